"""What was measured, kept in memory for the life of the process and, if asked, in a file for the next one."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fxprune._base import untrusted
from fxprune._base.errors import PlanError
from fxprune._base.files import write_text
from fxprune.runtimes.setting import Setting, device_name

_FORMAT = "fxprune latency table"

#: By circumstances, and by operation and widths: milliseconds.
_MEMORY: dict[str, dict[str, float]] = {}


@dataclass(slots=True)
class Store:
    """Milliseconds by key.

    Attributes:
        values: what is there.
        path: the file, or None.
    """

    values: dict[str, float] = field(default_factory=dict)
    path: Path | None = None

    def save(self) -> None:
        """Writes the file, whole or not at all."""
        if self.path is not None:
            body = {"format": _FORMAT, "ms": self.values}
            write_text(self.path, json.dumps(body, indent=0, allow_nan=False) + "\n")


def store_of(setting: Setting, cache_dir: str | os.PathLike[str] | None = None) -> Store:
    """Returns what is known under these circumstances: device, threads and version of torch.

    A file that cannot be read is as if it were not there, and is written anew.
    """
    circumstances = f"{device_name(setting.device)}, {setting.threads} threads, torch {torch.__version__}"
    values = _MEMORY.setdefault(circumstances, {})
    if cache_dir is None:
        return Store(values)
    name = "".join(letter if letter.isalnum() else "-" for letter in circumstances)
    path = Path(cache_dir) / f"latency-{name}.json"
    values.update({key: ms for key, ms in _read(path).items() if key not in values})
    return Store(values, path)


def _read(path: Path) -> dict[str, float]:
    try:
        data = untrusted.record(untrusted.decode(untrusted.read_file(path), path.name), path.name, ("format", "ms"))
        found = untrusted.mapping_of(data["ms"], path.name, untrusted.number)
    except (OSError, PlanError):
        return {}
    return {key: float(ms) for key, ms in found.items() if ms >= 0} if data["format"] == _FORMAT else {}

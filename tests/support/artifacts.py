"""Saved artifacts: damaged, sealed again, and watched while they are loaded."""

from __future__ import annotations

import hashlib
import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.results.plan import _digest

JSON_FILES = ("plan.json", "report.json", "graph.json", "manifest.json")
TENSOR_FILES = ("model.safetensors", "constants.safetensors")


def same(first: Any, second: Any) -> bool:
    """Returns whether two outputs are of one structure and hold the same bits."""
    (a, first_spec), (b, second_spec) = pytree.tree_flatten(first), pytree.tree_flatten(second)
    return first_spec == second_spec and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def reseal(directory: Path) -> None:
    """Writes the checksums that fit the files as they are now."""
    try:
        plan = json.loads((directory / "plan.json").read_text())
        plan["sha256"] = _digest({key: value for key, value in plan.items() if key != "sha256"})
        (directory / "plan.json").write_text(json.dumps(plan))
    except (ValueError, TypeError, KeyError):
        pass
    manifest = json.loads((directory / "manifest.json").read_text())
    for name in manifest["files"]:
        content = (directory / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (directory / "manifest.json").write_text(json.dumps(manifest))


EVIL = 'x"+__import__("os").system("true")+"'

_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "socket.connect",
    "os.fork",
    "shutil.rmtree",
)

_SEEN: list[str] = []
_ACTIVE: list[bool] = []


def _hook(event: str, args: Any) -> None:
    if _ACTIVE and (event in _FORBIDDEN or (event == "import" and args[0] in ("antigravity", "this"))):
        _SEEN.append(event)


sys.addaudithook(_hook)


class watched:  # noqa: N801 - used as a statement
    """Fails if anything is executed within that loading has no business with, or memory grows by 500 MB."""

    def __enter__(self) -> None:
        self.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        _ACTIVE.append(True)

    def __exit__(self, *_: object) -> None:
        _ACTIVE.pop()
        assert not _SEEN, _SEEN
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.before
        assert grown * (1 if sys.platform == "darwin" else 1024) < 500e6


def edit_manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        manifest = json.loads((directory / "manifest.json").read_text())
        change(manifest)
        (directory / "manifest.json").write_text(json.dumps(manifest))

    return edit


def edit_tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors")
        reseal(directory)

    return edit


def truncate(name: str, sealed: bool = False) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[: len(content) // 2])
        if sealed:
            reseal(directory)

    return edit


def flip(name: str) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        content = bytearray((directory / name).read_bytes())
        content[len(content) // 2] ^= 1
        (directory / name).write_bytes(content)

    return edit

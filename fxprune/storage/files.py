"""Files of tensors: found by a path or a pattern, and opened, several of them as one."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from fxprune._base.errors import PlanError


def found_files(files: str | os.PathLike[str]) -> list[Path]:
    """Returns the file of that path, whatever signs are in it, or those in a folder; otherwise those that match the pattern.

    Raises:
        PlanError: there is none.
        TypeError: it is no path.
    """
    if not isinstance(files, (str, os.PathLike)):
        raise TypeError(f"expected a file, a folder or a pattern such as 'in/*.safetensors', got {files!r:.80}")
    one = Path(files)
    if one.is_dir():
        files = os.path.join(glob.escape(os.fspath(one)), "*.safetensors")
    sources = [one] if one.is_file() else [Path(name) for name in sorted(glob.glob(os.fspath(files)))]
    if not sources:
        raise PlanError(f"{os.fspath(files)}: no such file")
    return sources


def opened(path: Path, what: object) -> Any:
    """Returns an open safetensors file, to be used in a ``with``; ``what`` names it in the message.

    Raises:
        PlanError: it is no such file.
    """
    try:
        return safe_open(path, framework="pt")
    except Exception as error:  # whatever the library raises at what is no such file
        raise PlanError(f"{what}: it is no safetensors file ({error})") from error


class Together:
    """The tensors of several open files as those of one.

    Args:
        files: by their paths.

    Raises:
        PlanError: a tensor is in two of them; names it.
    """

    def __init__(self, files: Iterable[tuple[Path, Any]]) -> None:
        self._files: dict[str, Any] = {}
        for path, file in files:
            names = file.keys()
            for name in names:
                if name in self._files:
                    raise PlanError(f"{path}: {name!r:.80} is in another file as well")
                self._files[name] = file

    def keys(self) -> Iterable[str]:
        """Returns their names."""
        return self._files.keys()

    def get_tensor(self, name: str) -> Tensor:
        """Returns a tensor, ``[...]``."""
        found: Tensor = self._files[name].get_tensor(name)
        return found


@contextmanager
def opened_together(paths: Iterable[Path]) -> Iterator[Together]:
    """Yields several safetensors files as one.

    Raises:
        PlanError: one is no such file, or a tensor is in two of them.
    """
    with ExitStack() as stack:
        yield Together([(path, stack.enter_context(opened(path, path.name))) for path in paths])

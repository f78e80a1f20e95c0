"""Where results go: checked before any work is done."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from fxprune.cli.errors import InputError


def check_directory(out: str | os.PathLike[str]) -> None:
    """Makes sure that ``fxprune.save`` may write to a directory.

    Raises:
        PlanError: it holds something other than an artifact.
        OSError: it cannot be written.
    """
    from fxprune.storage.artifact import check_target

    check_target(out)
    _check_writable(Path(out).resolve().parent)


def check_file(path: str | os.PathLike[str]) -> None:
    """Makes sure that a file can be written.

    Raises:
        InputError: it is a directory.
        OSError: it cannot be written.
    """
    if Path(path).is_dir():
        raise InputError(f"{path}: expected the name of a file to write, got a directory")
    _check_writable(Path(path).resolve().parent)


def _check_writable(folder: Path) -> None:
    """Tries it, since permissions alone do not tell; nothing stays behind."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    with tempfile.TemporaryDirectory(dir=there, prefix=".fxprune."):
        pass

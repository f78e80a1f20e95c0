"""Files and directories that appear in one piece: whatever interrupts the writing, the old one is there or the new one, whole."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

#: What systems say that do not sync such a thing: directories, files on some network drives.
_NO_SYNC = {errno.EACCES, errno.EPERM, errno.EINVAL, errno.EBADF, errno.ENOTSUP}

#: What the names of unfinished things end with.
_DRAFT = ".fxprune-draft"


def write_text(path: str | PathLike[str], text: str) -> None:
    """Writes a file in one piece.

    Raises:
        OSError: it cannot be written.
    """
    with replaced(Path(path).resolve()) as draft:
        draft.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """Yields where to write a file; at the end it takes the target's place, unless there was an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _beside(target) as folder:
        draft = folder / target.name
        yield draft
        _as_usual(draft)
        sync(draft)
        draft.replace(target)
    sync(target.parent)


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Yields an empty directory beside a target, which is gone at the end; those that killed processes left go away as well."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.*{_DRAFT}"):
        if _is_new(left):
            continue  # made, and not yet held
        with held(left) as free:
            if free:
                shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(_DRAFT, f".{target.name}.", target.parent))
    with held(folder):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _is_new(folder: Path) -> bool:
    """Returns whether a folder is empty, and was made within a minute; or is gone."""
    try:
        return not any(folder.iterdir()) and time.time() - folder.stat().st_mtime < 60
    except OSError:
        return True


@contextlib.contextmanager
def held(path: Path) -> Iterator[bool | None]:
    """Yields whether this process holds a file or directory now, which others then do not; None where the system does not tell.

    Whatever ends the process, it lets go.
    """
    try:
        import fcntl

        handle = os.open(path, os.O_RDONLY)
    except (ImportError, OSError):
        yield None
        return
    free: bool | None = True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        free = False if isinstance(error, BlockingIOError) else None
    try:
        yield free
    finally:
        os.close(handle)


@contextlib.contextmanager
def fresh_directory(target: Path) -> Iterator[Path]:
    """Yields a new directory beside the target; what is left of it at the end goes away."""
    fresh = target.with_name(f".{target.name}{_DRAFT}")  # a name that nobody else gives: see `put_in_place`
    shutil.rmtree(fresh, ignore_errors=True)  # what a killed process left
    fresh.mkdir()
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def put_in_place(fresh: Path, target: Path) -> None:
    """Renames a complete directory to its place; for a moment the old one waits under another name.

    Both names say whose they are, so that what an interrupted run left is cleared, and nothing of anybody else.
    """
    for path in (*fresh.iterdir(), fresh):
        if path.is_file():
            _as_usual(path)
        sync(path)
    _recover(target)
    previous = _previous(target)
    if not target.exists():
        fresh.rename(target)
    else:
        target.rename(previous)
        try:
            fresh.rename(target)
        except OSError:
            previous.rename(target)
            raise
        shutil.rmtree(previous, ignore_errors=True)
    sync(target.parent)


def _as_usual(path: Path) -> None:
    """Has a file be read and written by whom a new file here is, whatever made it."""
    usual = path.with_name(f".{path.name}.mode")
    with contextlib.suppress(OSError):  # some network drives know no modes
        usual.touch()
        path.chmod(stat.S_IMODE(usual.stat().st_mode))
    usual.unlink(missing_ok=True)


def readable(target: Path) -> Path:
    """Returns where a directory is to be read: as it is named, or where it waits if a replacement was interrupted half-way."""
    previous = _previous(target.resolve())
    return previous if not target.exists() and previous.is_dir() else target


def _recover(target: Path) -> None:
    """Undoes a replacement that was interrupted half-way, or clears what one left behind."""
    previous = _previous(target)
    if not previous.is_dir():
        return
    if target.exists():
        shutil.rmtree(previous, ignore_errors=True)
    else:
        previous.rename(target)


def sync(path: Path) -> None:
    """Has the system write a file or directory out; not every system can."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _previous(target: Path) -> Path:
    return target.with_name(f".{target.name}.fxprune-previous")


def unwritable(folder: Path) -> str:
    """Returns why no file can be put into a directory, or into the one that it would be made in; empty if one can.

    It is tried, since permissions alone do not tell; nothing stays behind.
    """
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        with tempfile.TemporaryDirectory(dir=there, prefix=".fxprune."):
            return ""
    except OSError as error:
        return error.strerror or str(error)

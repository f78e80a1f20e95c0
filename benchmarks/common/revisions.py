"""The package as it was at another revision of the repository."""

from __future__ import annotations

import io
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import ROOT

PACKAGE = "fxprune"


@contextmanager
def unpacked(revision: str) -> Iterator[Path]:
    """Gives a temporary folder in which the package stands as it was.

    Raises:
        SystemExit: there is no such revision; the message is git's.
    """
    command = ["git", "-C", str(ROOT), "archive", "--format=tar", revision, PACKAGE]
    packed = subprocess.run(command, capture_output=True, check=False)
    if packed.returncode:
        raise SystemExit(f"expected a revision that git knows, got {revision!r}: {packed.stderr.decode().strip()}")
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
        yield Path(folder)

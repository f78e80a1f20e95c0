"""Where the real data lies, and how to say that it is absent."""

from __future__ import annotations

import os
from pathlib import Path

from . import ROOT

VARIABLE = "FXPRUNE_SHARED"


class MissingDataError(FileNotFoundError):
    """A file of the shared data folder that a benchmark needs is not there."""


def shared_folder() -> Path:
    """Returns the folder of public data and models: ``$FXPRUNE_SHARED``, or ``shared`` beside the repository."""
    return Path(os.environ.get(VARIABLE) or ROOT.parent / "shared")


def shared_file(relative: str) -> Path:
    """Returns an existing file of the shared folder.

    Raises:
        MissingDataError: the file is absent; the message says which and how to point at it.
    """
    path = shared_folder() / relative
    if not path.exists():
        raise MissingDataError(
            f"skipped: {relative} is not in {shared_folder()}; set {VARIABLE} to the folder that holds it"
        )
    return path

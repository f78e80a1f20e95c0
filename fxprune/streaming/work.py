"""What a streamed compilation has done so far, beside the place where its result goes: an interrupted one goes on from there."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxprune._base.errors import FxpruneError
from fxprune._base.files import held, replaced
from fxprune._base.shelf import Shelf
from fxprune.scoring.scorer import Context, Scorer

#: Says what the work is of.
_KEY = "key"

#: The shelf of scores.
SCORES = "scores"


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """Shelves in a folder.

    Attributes:
        folder: exists.
    """

    folder: Path
    _shelves: dict[str, Shelf] = field(default_factory=dict)

    def shelf(self, name: str) -> Shelf:
        """Returns a shelf by its name; a new one is empty."""
        if name not in self._shelves:
            self._shelves[name] = Shelf(self.folder, name)
        return self._shelves[name]


@contextmanager
def working(target: Path, scores: Mapping[str, Any], rest: Mapping[str, Any]) -> Iterator[Work]:
    """Yields the work towards a directory: an earlier one's, if it was of the same and did not come to its end; it is gone at the end.

    Args:
        target: the directory.
        scores: tells what the scores depend on.
        rest: tells what all else depends on besides.

    Raises:
        FxpruneError: another process works towards the same directory.
    """
    folder = target.with_name(f".{target.name}.fxprune-work")
    keys = [hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest() for key in (scores, rest)]
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        _clear(folder, "\n".join(keys).encode())
        try:
            yield Work(folder)
        except BaseException as error:
            if any(folder.glob("*.safetensors")):
                error.add_note(f"what is done so far is in {folder}: the next call with this out= goes on from there")
            else:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        (folder / _KEY).unlink()  # what is left of it after that is nothing to go on from
        shutil.rmtree(folder, ignore_errors=True)


def _clear(folder: Path, keys: bytes) -> None:
    """Clears away what is of something else."""
    known = (folder / _KEY).read_bytes() if (folder / _KEY).is_file() else b""
    if known == keys:
        return
    same_scores = known.split(b"\n")[0] == keys.split(b"\n")[0]
    for path in folder.glob("*.safetensors*"):
        if not same_scores or not path.name.startswith(f"{SCORES}-"):
            path.unlink()
    with replaced(folder / _KEY) as draft:
        draft.write_bytes(keys)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps other processes out, where the system has locks."""
    (lock := folder / "lock").touch()
    with held(lock) as free:
        if free is False:
            raise FxpruneError(f"{folder}: another process works there: wait for it, or choose another directory")
        yield


class Remembered:
    """A criterion that scores once, also over interruptions.

    Args:
        inner: the criterion.
        shelf: where its scores are kept.
    """

    def __init__(self, inner: Scorer, shelf: Shelf) -> None:
        self.inner, self.shelf = inner, shelf
        self.name, self.needs, self.per_cost, self.defaults = inner.name, inner.needs, inner.per_cost, inner.defaults

    def score(self, context: Context) -> Mapping[str, Tensor]:
        """Returns the inner criterion's scores, ``[units]`` by group."""
        names = [group.name for group in context.coupling.groups]
        if not all(name in self.shelf for name in names):
            found = dict(self.inner.score(context))
            self.shelf.put({name: torch.as_tensor(scores).clone() for name, scores in found.items()})
        return {name: self.shelf[name].clone() for name in names}

"""Values that wait: of many batches that advance in turns, those between two turns, in memory as far as they fit, in files beyond."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune._base.errors import RecoveryError


class Waiting:
    """Holds the values of each batch while the others have their turn.

    Args:
        limit: bytes that may be held in memory; what is beyond waits in a file.
        files: where files are made, a folder of its own, from the first one on.
    """

    def __init__(self, limit: int, files: ExitStack) -> None:
        self._room, self._files = limit, files
        self._folder: Path | None = None
        self._held: dict[int, tuple[list[Any] | None, pytree.TreeSpec]] = {}

    def put(self, number: int, values: Any) -> None:
        """Takes in the values of a batch, in any nest of containers.

        Raises:
            RecoveryError: a file cannot be written.
        """
        leaves, spec = pytree.tree_flatten(values)
        size = _bytes(leaves)
        if size <= self._room:
            self._room -= size
            self._held[number] = leaves, spec
            return
        try:
            torch.save([_alone(leaf) for leaf in leaves], self._path(number))
        except (OSError, RuntimeError) as error:
            text = f"values that wait for their layer, {size} bytes, cannot be written to a file: {error}; raise memory_limit, or set TMPDIR"
            raise RecoveryError(text) from error
        self._held[number] = None, spec

    def take(self, number: int) -> Any:
        """Returns the values of a batch, which are held no longer."""
        leaves, spec = self._held.pop(number)
        if leaves is None:
            leaves = torch.load(self._path(number), weights_only=True)
            self._path(number).unlink()
        else:
            self._room += _bytes(leaves)
        return pytree.tree_unflatten(leaves, spec)

    def _path(self, number: int) -> Path:
        if self._folder is None:
            self._folder = Path(self._files.enter_context(tempfile.TemporaryDirectory(prefix="fxprune-")))
        return self._folder / f"{number}.pt"


def _bytes(leaves: list[Any]) -> int:
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))


def _alone(leaf: Any) -> Any:
    """Returns a part of a larger tensor as one of its own: a file holds all that a tensor is a view of."""
    part = isinstance(leaf, Tensor) and leaf.untyped_storage().nbytes() > leaf.nbytes
    return leaf.clone() if part else leaf


@contextmanager
def waiting(limit: int) -> Iterator[Waiting]:
    """Yields a place for values, whose files, if it comes to that, lie in the temporary folder and are gone behind it."""
    with ExitStack() as files:
        yield Waiting(limit, files)

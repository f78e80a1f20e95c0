"""A folder of tensors that have been made: each is in a file from then on, whole or not at all, and need not be made again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fxprune._base.errors import FxpruneError
from fxprune._base.files import sync
from fxprune._base.pages import mapped

#: Bytes of a file whose tensors may wait for each other.
_ENOUGH = 512 << 20

#: Ends the name of a file that is being written.
_DRAFT = ".part"


class Shelf:
    """Tensors by name, in safetensors files of one folder.

    Args:
        folder: exists; what an earlier process put there is on the shelf.
        stem: begins the names of the files.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        self._folder, self._stem = folder, stem
        self.files: list[Path] = []
        self._tensors: dict[str, Tensor] = {}
        self._gathered: dict[str, Tensor] = {}
        for draft in folder.glob(f"{stem}-*{_DRAFT}"):
            draft.unlink()
        for path in sorted(folder.glob(f"{stem}-*.safetensors")):
            self._open(path)

    def __contains__(self, name: object) -> bool:
        """Returns whether a tensor of this name is there."""
        return name in self._tensors

    def __getitem__(self, name: str) -> Tensor:
        """Returns a tensor, ``[...]``, mapped."""
        return self._tensors[name]

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Writes tensors, ``[...]`` by name, to one file, and has each lie there instead of in memory.

        Raises:
            FxpruneError: the file cannot be written; nothing of it is left, and what was there before stays.
        """
        path = self._folder / f"{self._stem}-{len(self.files) + 1:05}.safetensors"
        draft = path.with_name(path.name + _DRAFT)
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, draft, metadata={"format": "pt"})
            sync(draft)
            os.replace(draft, path)
        except Exception as error:  # what the library raises where a disk is full is no OSError
            draft.unlink(missing_ok=True)
            text = f"{path}: it cannot be written: {error}. What is done so far stays: make room, and call again"
            raise FxpruneError(text) from error
        self._open(path)
        for name, tensor in tensors.items():
            tensor.data = self._tensors[name]

    def flush(self) -> None:
        """Writes what `take` has gathered.

        Raises:
            FxpruneError: as `put`.
        """
        gathered, self._gathered = self._gathered, {}
        if gathered:
            self.put(gathered)

    def take(self, name: str, tensor: Tensor) -> None:
        """Takes in a tensor, ``[...]``, which lies in a file once there are enough of them, or after `flush`.

        Raises:
            FxpruneError: as `put`.
        """
        self._gathered[name] = tensor
        if sum(each.nbytes for each in self._gathered.values()) >= _ENOUGH:
            self.flush()

    def _open(self, path: Path) -> None:
        self.files.append(path)
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            self._tensors.update((name, mapped(file.get_tensor(name))) for name in names)

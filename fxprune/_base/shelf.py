"""A folder of tensors that have been made: each is in a file from then on, whole or not at all, and need not be made again."""

from __future__ import annotations

import hashlib
import os
import re
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
    """Tensors by name, in safetensors files of one folder, which have a number and a checksum in their names.

    Args:
        folder: exists; what an earlier process put there is on the shelf, but for what was damaged since.
        stem: begins the names of the files.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        self._folder, self._stem, self._last = folder, stem, 0
        self.files: list[Path] = []
        self.notes: dict[str, str] = {}
        self._tensors: dict[str, Tensor] = {}
        self._gathered: dict[str, Tensor] = {}
        for draft in folder.glob(f"{stem}-*{_DRAFT}"):
            draft.unlink()
        for path in sorted(folder.glob(f"{stem}-*.safetensors")):
            known = re.fullmatch(rf"{stem}-([0-9]{{5}})-([0-9a-f]{{16}})\.safetensors", path.name)
            if known is None or _checksum(path) != known[2]:
                path.unlink()
                continue
            self._last = int(known[1])
            self._open(path)

    def __contains__(self, name: object) -> bool:
        """Returns whether a tensor of this name is there."""
        return name in self._tensors

    def __getitem__(self, name: str) -> Tensor:
        """Returns a tensor, ``[...]``, mapped."""
        return self._tensors[name]

    def put(self, tensors: Mapping[str, Tensor], note: str = "") -> None:
        """Writes tensors, ``[...]`` by name, to one file, and has each lie there instead of in memory.

        Args:
            tensors: by name.
            note: what is to be known of them; in ``notes`` by each name.

        Raises:
            FxpruneError: the file cannot be written; nothing of it is left, and what was there before stays.
        """
        number = self._last + 1
        draft = self._folder / f"{self._stem}-{number:05}{_DRAFT}"
        try:
            plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(plain, draft, metadata={"format": "pt", "note": note})
            sync(draft)
            path = self._folder / f"{self._stem}-{number:05}-{_checksum(draft)}.safetensors"
            os.replace(draft, path)
        except Exception as error:  # what the library raises where a disk is full is no OSError
            draft.unlink(missing_ok=True)
            text = f"{draft}: it cannot be written: {error}. What is done so far stays: make room, and call again"
            raise FxpruneError(text) from error
        self._last = number
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
            names, note = file.keys(), (file.metadata() or {}).get("note", "")
            self._tensors.update((name, mapped(file.get_tensor(name))) for name in names)
        if note:
            self.notes.update(dict.fromkeys(names, note))


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]

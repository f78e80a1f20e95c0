"""What tells things apart, also in another process: data, models, options."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from fxprune.data.batches import Batches

#: So many pieces of a file are looked at, of so many bytes.
_PIECES, _PIECE = 64, 4096

#: Containers and objects in each other are looked into so far.
_DEEP = 8


def digest_of(values: Iterable[Any]) -> str:
    """Returns what tells tensors, ``[...]`` each, and other values from others: by shapes, dtypes and numbers."""
    found = hashlib.sha256()
    for value in values:
        if not isinstance(value, Tensor):
            found.update(repr(told(value)).encode())
            continue
        found.update(f"{tuple(value.shape)} {value.dtype}".encode())
        if not value.is_meta:
            plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
            found.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def digest_of_batches(batches: Batches) -> str:
    """Returns what tells calibration data from others."""
    return digest_of(each for batch in batches for each in (batch.args, batch.kwargs, batch.targets))


def digest_of_file(path: Path) -> str:
    """Returns what tells a large file from others: its size, and pieces of it."""
    size, found = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        for place in range(0, size, max(size // _PIECES, 1)):
            file.seek(place)
            found.update(file.read(_PIECE))
    return f"{size} {path.stat().st_mtime_ns} {found.hexdigest()}"


def told(value: Any, depth: int = 0) -> Any:
    """Returns what a value is, as plain data that are the same in another process; of an object its attributes, to some depth."""
    deeper = partial(told, depth=depth + 1)
    if depth > _DEEP:
        return type(value).__qualname__
    if isinstance(value, Mapping):
        return {str(name): deeper(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [deeper(each) for each in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, map(deeper, value)))
    if isinstance(value, Tensor):
        return digest_of([value])
    if value is None or isinstance(value, (str, int, float, complex, bool, bytes, torch.dtype, PurePath)):
        return f"{type(value).__name__} {value!r}"
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if hasattr(value, "__dataclass_fields__"):
        return {"": name} | {entry.name: deeper(getattr(value, entry.name)) for entry in fields(value)}
    return {"": name} | {str(key): deeper(each) for key, each in getattr(value, "__dict__", {}).items()}

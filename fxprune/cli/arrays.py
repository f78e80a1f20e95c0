"""Arrays from an ``.npz`` file: the model's inputs by name, and ``labels``."""

from __future__ import annotations

import inspect
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.capturing.normalize.dtypes import main_dtype
from fxprune.cli.errors import InputError, one_line, suggestion
from fxprune.data.batch import TARGET_KEYS


def read_arrays(path: Path, model: nn.Module, samples: int, batch_size: int, seed: int) -> list[Any]:
    """Returns batches; a single array is the model's first argument, several go by their names.

    Floating-point arrays take the model's dtype (numpy makes float64 unless told otherwise).

    Raises:
        InputError: it is no such file, holds pickled objects or no arrays, or they do not fit each other or
            the model.
    """
    arrays = _arrays(path)
    labels = next((arrays.pop(key) for key in TARGET_KEYS if key in arrays), None)
    if not arrays:
        raise InputError(f"{path}: no arrays for the model's inputs")
    _check_sizes(path, arrays | ({} if labels is None else {"labels": labels}))
    if len(arrays) > 1:
        _check_names(path, arrays, model)
    dtype = main_dtype(model.parameters()) or torch.float32
    tensors = {name: _tensor(path, name, array, dtype) for name, array in arrays.items()}
    targets = None if labels is None else torch.from_numpy(labels)
    count = len(next(iter(arrays.values())))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:samples]
    batches: list[Any] = []
    for part in order.split(batch_size):
        picked = {name: tensor[part] for name, tensor in tensors.items()}
        if len(picked) > 1:
            batches.append(picked if targets is None else {**picked, "labels": targets[part]})
        else:
            only = next(iter(picked.values()))
            batches.append(only if targets is None else (only, targets[part]))
    return batches


def _arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not hasattr(file, "files"):
                raise InputError(f"{path}: expected an .npz file of named arrays, got a single array")
            return {name: file[name] for name in file.files}
    except (ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: it is no .npz file of plain arrays ({one_line(error)[:120]}): write it with numpy.savez"
        ) from error


def _check_sizes(path: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    for name, array in arrays.items():
        if array.ndim == 0 or not len(array):
            raise InputError(f"{path}: {name!r} has shape {list(array.shape)}; expected samples first, at least one")
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(f"{path}: expected as many samples in each array, got {found}")


def _check_names(path: Path, arrays: dict[str, np.ndarray[Any, Any]], model: nn.Module) -> None:
    parameters = inspect.signature(model.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    if strange := [name for name in arrays if name not in parameters]:
        raise InputError(
            f"{path}: {strange[0]!r} is no argument of the model, which takes {', '.join(parameters)}"
            f"{suggestion(strange[0], parameters)}"
        )


def _tensor(path: Path, name: str, array: np.ndarray[Any, Any], dtype: torch.dtype) -> Tensor:
    try:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
    except TypeError as error:
        raise InputError(f"{path}: {name!r} holds {array.dtype}; expected numbers") from error
    return tensor.to(dtype) if tensor.is_floating_point() else tensor

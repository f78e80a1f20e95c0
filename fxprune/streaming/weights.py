"""A model on the meta device over the tensors of files: as many as there are, none of them in memory before it is read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from os import PathLike, fspath
from typing import Any

import torch
from torch import Tensor, nn

from fxprune._base.copies import copied
from fxprune._base.errors import CalibrationError, FxpruneWarning, outside
from fxprune._base.pages import mapped
from fxprune.results.tables import few
from fxprune.storage.files import found_files, opened_together


def filled(empty: nn.Module, files: str | PathLike[str]) -> nn.Module:
    """Returns a copy of a model whose parameters and saved buffers are mapped from safetensors files, in the files' dtypes.

    Args:
        empty: the model, on the meta device; it stays there.
        files: a file, or a pattern such as ``"in/*.safetensors"``.

    Raises:
        CalibrationError: the model has values already; a tensor is missing in the files, is of another shape there, or
            can be in no file and has no values: names it.
        PlanError: no such files, one that is no safetensors file, or a tensor that is in two of them.
    """
    real = [name for name, parameter in empty.named_parameters() if not parameter.is_meta]
    if real:
        raise CalibrationError(
            f"weights: they are to come from {fspath(files)}, and the model has values already ({few(real, 2)}): build it under "
            "torch.device('meta')"
        )
    stored = _stored(files)
    model = copied(empty)
    every = {**dict(model.named_parameters(remove_duplicate=False)), **_saved_buffers(model)}
    aliases: dict[int, list[str]] = {}
    for name, tensor in every.items():
        aliases.setdefault(id(tensor), []).append(name)
    for names in aliases.values():
        _fill(model, names, every[names[0]], stored)
    if unknown := sorted(stored.keys() - every.keys()):
        text = f"weights: {fspath(files)} holds tensors that the model does not have, and they are left out: {few(unknown, 3)}"
        warnings.warn(FxpruneWarning(text), stacklevel=outside())
    _begin_buffers(model)
    return model


def _stored(files: str | PathLike[str]) -> dict[str, Tensor]:
    with opened_together(found_files(files)) as together:
        names = together.keys()
        return {name: mapped(together.get_tensor(name)) for name in names}


def _saved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Returns the buffers that a state dict has, by all their names."""
    return {
        f"{path}.{name}" if path else name: buffer
        for path, module in model.named_modules(remove_duplicate=False)
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    }


def _fill(model: nn.Module, names: list[str], own: Tensor, stored: Mapping[str, Tensor]) -> None:
    """Gives a tensor its values, under all its names."""
    source = next((name for name in names if name in stored), None)
    if source is None:
        if not own.is_meta:
            return
        raise CalibrationError(f"weights: {names[0]} {list(own.shape)} is in none of the files")
    value = stored[source]
    if value.shape != own.shape:
        raise CalibrationError(f"weights: {source}: expected {list(own.shape)}, the files hold {list(value.shape)}")
    if isinstance(own, nn.Parameter):
        value = nn.Parameter(value, own.requires_grad and value.is_floating_point())
    for name in names:
        path, _, leaf = name.rpartition(".")
        held = model.get_submodule(path)
        place: dict[str, Any] = held._parameters if leaf in held._parameters else held._buffers
        place[leaf] = value


def _begin_buffers(model: nn.Module) -> None:
    """Has a model compute the buffers that no file holds, where it has a rule for how a module begins, as those of transformers do.

    Raises:
        CalibrationError: a buffer, or another tensor that a module keeps, has no values.
    """
    rule: Any = getattr(model, "_init_weights", None)
    for path, module in model.named_modules():
        lost = {name: b for name, b in module._buffers.items() if b is not None and b.is_meta}
        if lost and callable(rule) and not module._parameters:
            module._buffers.update(_begun(module, rule, lost))
        kept = {**vars(module), **module._buffers}
        if bare := [name for name, value in kept.items() if isinstance(value, Tensor) and value.is_meta]:
            raise CalibrationError(
                f"weights: {path}{path and '.'}{bare[0]} is in no file, and lies on the meta device: build the model so that buffers have "
                "their values, with accelerate.init_empty_weights() in place of torch.device('meta')"
            )


@torch.no_grad()
def _begun(module: nn.Module, rule: Callable[[nn.Module], Any], lost: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the lost buffers, ``[...]`` each, that a rule gives the same values whatever was there before; all else stays as it is."""
    others = {name: buffer for name, buffer in module._buffers.items() if name not in lost}
    found: list[dict[str, Tensor]] = []
    for number in (0, 1):
        copies = {name: buffer if buffer is None else buffer.clone() for name, buffer in others.items()}
        blank = {name: torch.full(meta.shape, number, dtype=meta.dtype) for name, meta in lost.items()}
        module._buffers.update({**copies, **blank})
        rule(module)
        found.append({name: value for name in lost if (value := module._buffers[name]) is not None})
    module._buffers.update({**others, **lost})
    one, other = found
    return {name: value for name, value in one.items() if name in other and torch.equal(value, other[name])}

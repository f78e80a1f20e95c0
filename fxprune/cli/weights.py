"""Weights from a file: safetensors, or a state dict that ``torch.save`` wrote; nothing in it is executed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fxprune._base.errors import PlanError
from fxprune.cli.errors import InputError, one_line, refused
from fxprune.cli.specs import ModelSpec
from fxprune.storage.files import found_files

#: Where checkpoints of training scripts keep the state dict, and what wrappers put before its names.
_INSIDE = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")


def files_of(spec: ModelSpec) -> str:
    """Returns the file, folder or pattern of the safetensors files that hold a model's weights.

    Raises:
        InputError: the weights are in no such files.
    """
    name = spec.spec.partition(":")[2] if spec.spec.startswith("transformers:") else None
    given = name if spec.named is not None or spec.weights is None else spec.weights
    expected = (
        "expected --weights FILE, 'in/*.safetensors' or a folder of safetensors files, or transformers: with a folder"
    )
    if given is None or (name is not None and given == name and not Path(name).is_dir()):
        raise InputError(f"--stream reads the weights from their files: {expected}")
    try:
        found = found_files(given)
    except PlanError:
        found = []
    if not found or any(path.suffix != ".safetensors" for path in found):
        raise InputError(f"--stream: no safetensors files at {given}: {expected}")
    return given


def load_weights(model: nn.Module, path: Path) -> None:
    """Puts a file's weights into a model; they must be exactly the model's.

    Raises:
        InputError: it is no such file, or a tensor is missing, too many, or of another shape; names the
            first.
    """
    tensors = _without_prefix(_read(path), model)
    try:
        missing, unknown = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # the shapes differ
        raise InputError(f"{path}: these weights do not fit the model: {one_line(error)[:400]}") from error
    own = model.state_dict(keep_vars=True)
    present = {id(value) for name, value in own.items() if name in tensors}  # ties count once
    faults = [f"{name!r} is missing" for name in missing if id(own[name]) not in present]
    faults += [f"{name!r} is unknown to the model" for name in unknown]
    if faults:
        more = f" and {len(faults) - 2} more" if len(faults) > 2 else ""
        raise InputError(f"{path}: these weights do not fit the model: {'; '.join(faults[:2])}{more}")


def _read(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise InputError(f"{path}: no .safetensors file in this folder")
        return {name: tensor for file in files for name, tensor in _read(file).items()}
    if path.suffix.lower() == ".safetensors":
        with refused(f"{path}: it is no safetensors file", kind=SafetensorError):
            return load_file(path)
    way = ": save it with torch.save(model.state_dict(), ...) or as safetensors"
    with refused(f"{path}: it is no plain state dict, and nothing else is read", way):
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    inner = next((found[key] for key in _INSIDE if isinstance(found, Mapping) and key in found), found)
    if not isinstance(inner, Mapping) or not all(isinstance(value, Tensor) for value in inner.values()):
        raise InputError(f"{path}: expected a state dict, names to tensors, got {type(inner).__name__}")
    return dict(inner)


def _without_prefix(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Takes off what DistributedDataParallel and ``torch.compile`` put before every name, in any order."""
    prefixes = [each for each in _PREFIXES if all(name.startswith(each) for name in tensors)]
    if not tensors or not prefixes or tensors.keys() & model.state_dict().keys():
        return tensors
    nn.modules.utils.consume_prefix_in_state_dict_if_present(tensors, prefixes[0])
    return _without_prefix(tensors, model)

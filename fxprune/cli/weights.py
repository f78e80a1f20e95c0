"""Weights from a file: safetensors, or a state dict that ``torch.save`` wrote; nothing in it is executed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fxprune._base.errors import PlanError
from fxprune.cli.errors import InputError, OptionError, one_line, refused
from fxprune.cli.output import warn
from fxprune.cli.specs import ModelSpec
from fxprune.storage.files import found_files

#: Where checkpoints of training scripts and of Lightning keep the state dict.
_INSIDE = ("state_dict", "model_state_dict", "model")

#: What `torch.compile` puts into names, where a part of a model was compiled.
_COMPILED = "_orig_mod."


def files_of(spec: ModelSpec) -> str:
    """Returns the file, folder or pattern of the safetensors files that hold a model's weights.

    Raises:
        OptionError: the weights are in no such files.
    """
    name = spec.spec.partition(":")[2] if spec.spec.startswith("transformers:") else None
    given = name if spec.named is not None or spec.weights is None else spec.weights
    expected = (
        "expected --weights FILE, 'in/*.safetensors' or a folder of safetensors files, or transformers: with a folder"
    )
    if given is None or (name is not None and given == name and not Path(name).is_dir()):
        raise OptionError(f"--stream reads the weights from their files: {expected}")
    try:
        found = found_files(given)
    except PlanError:
        found = []
    if not found or any(path.suffix != ".safetensors" for path in found):
        raise OptionError(f"--stream: no safetensors files at {given}: {expected}")
    return given


def load_weights(model: nn.Module, path: Path) -> None:
    """Puts a file's weights into a model; they must be exactly the model's, behind what wrappers put before all names.

    Raises:
        InputError: it is no such file, or tensors are missing, too many, or of another shape; names them.
    """
    own = model.state_dict(keep_vars=True)
    tensors = _under_own_names(_read(path), own, path)
    try:
        missing, unknown = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # the shapes differ
        raise InputError(f"{path}: these weights do not fit the model: {one_line(error)[:400]}") from error
    present = {id(value) for name, value in own.items() if name in tensors}  # ties count once
    absent = [name for name in missing if id(own[name]) not in present]
    if faults := [*_listed("missing", absent), *_listed("unknown to the model", unknown)]:
        raise InputError(f"{path}: these weights do not fit the model: {'; '.join(faults)}")


def _listed(what: str, names: Sequence[str]) -> list[str]:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return [f"{what}: {', '.join(map(repr, names[:5]))}{more}"] if names else []


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


def _under_own_names(tensors: dict[str, Tensor], own: Collection[str], path: Path) -> dict[str, Tensor]:
    """Returns a checkpoint's tensors under the model's names.

    Training code puts the model into something: ``model.`` or ``net.`` of a Lightning module, ``module.`` of DataParallel,
    ``_orig_mod.`` of `torch.compile`. The prefix behind which most of the model's names stand is taken off; what stands
    elsewhere, such as a loss or a metric, is not the model's, and is left out with a warning.

    Raises:
        InputError: the model's names stand behind several prefixes.
    """
    plain = {name.replace(_COMPILED, ""): tensor for name, tensor in tensors.items()}
    if len(plain) < len(tensors) or any(_COMPILED in name for name in own):
        plain = tensors
    counts = Counter(prefix for name in plain for prefix in _prefixes(name, own))
    most = max(counts.values(), default=0)
    best = [prefix for prefix, count in counts.items() if count == most]
    if "" in best or not best:
        return plain if best else tensors
    if len(best) > 1:
        raise InputError(
            f"{path}: the model's names are there {len(best)} times, behind {', '.join(sorted(best)[:5])}: save the "
            "weights that are meant alone"
        )
    (prefix,) = best
    if others := [name for name in plain if not name.startswith(prefix)]:
        warn(f"{path}: the model's weights are those behind {prefix}; {'; '.join(_listed('left out', others))}")
    return {name.removeprefix(prefix): tensor for name, tensor in plain.items() if name.startswith(prefix)}


def _prefixes(name: str, own: Collection[str]) -> list[str]:
    """Returns what stands before a name of the model's in a name of the checkpoint, shortest first; ``""`` for the name itself."""
    ends = [0, *(place + 1 for place, letter in enumerate(name) if letter == ".")]
    return [name[:end] for end in ends if name[end:] in own]

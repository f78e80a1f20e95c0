"""Checkpoints: one safetensors file with weights, optimiser state and history; it is replaced in one piece."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fxprune._base import untrusted
from fxprune._base.errors import PlanError
from fxprune._base.files import replaced
from fxprune.training.history import History

#: The name of the file in ``checkpoint_dir``.
FILE = "checkpoint.safetensors"

_FORMAT = "fxprune checkpoint"
_KEYS = {"format", "run", "history", "sha256"}


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """The state after an epoch.

    Attributes:
        history: up to that epoch.
        weights: parameters and buffers by name.
        optimizer: parameter -> key -> tensor.
    """

    history: History
    weights: dict[str, Tensor]
    optimizer: dict[str, dict[str, Tensor]]

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Puts weights, buffers and the optimiser's state in place."""
        own = tensors_of(model)
        with torch.no_grad():
            for name, tensor in self.weights.items():
                own[name].copy_(tensor)
        names = {parameter: name for name, parameter in model.named_parameters()}
        owners = (names[parameter] for group in optimizer.param_groups for parameter in group["params"])
        state = {index: self.optimizer[name] for index, name in enumerate(owners) if name in self.optimizer}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Returns every parameter and buffer, ``[...]`` each, by name, tied ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def write(
    directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer, history: History, run: Mapping[str, Any]
) -> None:
    """Writes a checkpoint; whatever interrupts it, the old file or the new one is there, whole.

    Args:
        directory: where to; it is made if it is missing.
        model: its parameters and buffers are saved.
        optimizer: of the model.
        history: so far.
        run: what a run must agree in to go on from here; plain values for JSON.

    Raises:
        OSError: it cannot be written.
    """
    tensors = {f"weights/{name}": tensor for name, tensor in tensors_of(model).items()}
    for name, parameter in model.named_parameters():
        kept = {key: value for key, value in optimizer.state.get(parameter, {}).items() if isinstance(value, Tensor)}
        tensors |= {f"optimizer/{key}/{name}": value for key, value in kept.items()}
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata = {
        "format": _FORMAT,
        "run": json.dumps(run),
        "history": json.dumps(history.to_dict(), allow_nan=False),
        "sha256": _digest(copies),
    }
    with replaced(directory / FILE) as draft:
        save_file(copies, draft, metadata=metadata)


def read(directory: Path, model: nn.Module, run: Mapping[str, Any]) -> Checkpoint | None:
    """Returns the checkpoint of a directory, checked against the model and the run; None if there is none.

    Raises:
        PlanError: it is damaged, no checkpoint, or one of another model or run.
    """
    path = directory / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: it is damaged, or no checkpoint ({error}); {_WAY_OUT}") from error
    if metadata.get("format") != _FORMAT or not metadata.keys() >= _KEYS:
        raise PlanError(f"{path}: expected a checkpoint of fxprune, got another safetensors file; {_WAY_OUT}")
    if metadata["sha256"] != _digest(tensors):
        raise PlanError(f"{path}: it is damaged: the checksum of its tensors differs; {_WAY_OUT}")
    _check_run(path, untrusted.decode(metadata["run"], f"{path}: run"), json.loads(json.dumps(run)))
    history = History.from_dict(untrusted.decode(metadata["history"], f"{path}: history"), f"{path}: history")
    found = Checkpoint(history, {}, {})
    for place, tensor in tensors.items():  # weights/NAME, or optimizer/KEY/NAME
        kind, _, name = place.partition("/")
        key, _, owner = name.partition("/")
        if kind == "weights":
            found.weights[name] = tensor
        elif kind == "optimizer":
            found.optimizer.setdefault(owner, {})[key] = tensor
    _check_fits(path, tensors_of(model), found)
    return found


_WAY_OUT = "pass resume=False to start anew over it, or another checkpoint_dir"


def _check_run(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for key in sorted(stored.keys() | wanted.keys()):
        if stored.get(key) != wanted.get(key):
            what = f"expected {wanted.get(key)!r}, got {stored.get(key)!r}"
            raise PlanError(f"{path}: it is of another run: {key}: {what}; {_WAY_OUT}")


def _check_fits(path: Path, own: Mapping[str, Tensor], found: Checkpoint) -> None:
    if odd := sorted(own.keys() ^ found.weights.keys()):
        where = "the model" if odd[0] in own else "the checkpoint"
        raise PlanError(f"{path}: it is of another model: only {where} has {odd[0]!r}; {_WAY_OUT}")
    states = ((name, tensor) for name, held in found.optimizer.items() for tensor in held.values() if tensor.dim())
    for name, tensor in (*found.weights.items(), *states):
        if name not in own or own[name].shape != tensor.shape:
            what = f"expected {list(own[name].shape) if name in own else 'nothing'}, got {list(tensor.shape)}"
            raise PlanError(f"{path}: it is of another model: {name}: {what}; {_WAY_OUT}")
    for name, tensor in found.weights.items():
        if own[name].dtype != tensor.dtype:
            raise PlanError(f"{path}: {name}: expected {own[name].dtype}, got {tensor.dtype}; {_WAY_OUT}")


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Returns one SHA-256 over names, dtypes, shapes and bytes."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()

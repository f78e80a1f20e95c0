"""A copy of the original with the tensors of its pruned graph."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm

from fxprune._base.copies import copied
from fxprune._base.errors import RestoreError
from fxprune._base.names import layer_of
from fxprune._base.pages import is_mapped, written
from fxprune.algebra.channels import Ids
from fxprune.capturing.captured import Captured
from fxprune.homing.layers import told

#: What a layer of the graph says of itself that no tensor shows.
_SAID = ("groups", "num_groups", "eps")
#: What weight norm makes a weight of.
_NORM_AND_DIRECTION = {"original0", "original1"}


def with_tensors(
    model: nn.Module,
    pruned: nn.Module,
    captured: Captured,
    cut: Mapping[str, Mapping[int, Ids]],
    keep: Mapping[str, Mapping[int, Ids]],
) -> nn.Module:
    """Returns a copy of a model with the tensors of its pruned graph, whose layers say what they hold; both stay as they are.

    Args:
        model: the original.
        pruned: the graph's module: what it has under a name goes there, at whatever size it is.
        captured: the captured model.
        cut: what is left, ``[kept]``, of dimensions of buffers that the graph has whole, and cuts where they are read.
        keep: what is left, ``[kept]``, of dimensions of the graph's own tensors.

    Raises:
        RestoreError: a computed weight cannot be given another value.
    """
    home = copied(model).eval()  # in which no parametrization changes as it is looked at
    values = {
        **dict(pruned.named_parameters(remove_duplicate=False)),
        **dict(pruned.named_buffers(remove_duplicate=False)),
    }
    for name in set(captured.folded) & set(values):  # first, since what they are made of is cut below
        held = _spectral(home.get_submodule(layer_of(name)), name.rpartition(".")[2])
        if held is not None:
            _normed(held, values[name], keep.get(name, {}))
    made: dict[int, Tensor] = {}
    for path, module in home.named_modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                full = f"{path}.{name}".removeprefix(".")
                new = values.get(full, values.get(captured.ties.get(full, full)))
                if full in captured.folded:  # the graph has under this name what the forward makes of it
                    new = None
                if old is not None and (new is not None or full in cut):
                    kept = _kept(old if new is None else new, cut.get(full, {}))
                    stays = (
                        captured.ties.get(full, full) in captured.held
                    )  # others may have it: it stays the tensor that it is
                    tensors[name] = made.setdefault(id(old), written(old, kept) if stays else _like(old, kept))
    for name in captured.folded:
        if name not in values:  # its layer is gone whole
            continue
        owner, attribute = home.get_submodule(layer_of(name)), name.rpartition(".")[2]
        whole = not keep.get(name)  # then what computes it in its forward has all that it had
        if not whole or parametrize.is_parametrized(owner, attribute):
            _give(owner, attribute, name, values[name], keep.get(name, {}))
    _carry(model, home)
    for path, module in home.named_modules():
        _repeat(pruned, path, module)
        if isinstance(module, nn.RNNBase):
            module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
    told(home)
    return home


def _carry(model: nn.Module, home: nn.Module) -> None:
    """Gives the parameters of a copy the hooks and attributes that those of the model have."""
    left = dict(home.named_parameters(remove_duplicate=False))
    for name, old in model.named_parameters():
        new = left.get(name)
        if new is None:
            continue
        new.__dict__.update({key: value for key, value in vars(old).items() if key not in vars(new)})
        for held in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            if (hooks := getattr(old, held, None)) and new.requires_grad:
                setattr(new, held, OrderedDict(hooks))


def _kept(tensor: Tensor, cut: Mapping[int, Ids]) -> Tensor:
    """Returns what is left of a tensor, ``[...]``; a dimension that is shorter already has been cut."""
    for dim, index in cut.items():
        if len(index) and tensor.shape[dim] > index[-1]:
            tensor = tensor.index_select(dim, torch.from_numpy(index).to(tensor.device))
    return tensor


def _like(old: Tensor, new: Tensor) -> Tensor:
    value = new.detach() if is_mapped(new) else new.detach().clone()
    return nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value


def _repeat(pruned: nn.Module, path: str, module: nn.Module) -> None:
    try:
        made = pruned.get_submodule(path)
    except AttributeError:
        return
    if path and isinstance(module, type(made)):
        module.__dict__.update(
            {name: vars(made)[name] for name in _SAID if name in vars(made) and name in vars(module)}
        )


def can_shrink(owner: nn.Module, attribute: str, dim: int) -> bool:
    """Returns whether a layer whose weight is computed can compute one that lacks coordinates of a dimension; it stays as it is."""
    if _spectral(owner, attribute) is not None:
        return True
    tried = copied(owner).eval()  # in training mode some parametrizations step as they are looked at
    value = getattr(tried, attribute).detach()
    places = np.arange(value.shape[dim])
    left = places[(places != 0) & (places != len(places) // 2)] if len(places) > 2 else places[:1]
    try:
        _give(tried, attribute, attribute, _kept(value, {dim: left}), {dim: left})
    except RestoreError:
        return False
    return True


def _give(owner: nn.Module, attribute: str, name: str, value: Tensor, kept: Mapping[int, Ids]) -> None:
    """Has a parametrised layer compute a value of its weight, ``[...]``, which has ``kept`` of its dimensions.

    Raises:
        RestoreError: it cannot.
    """
    if not parametrize.is_parametrized(owner, attribute):
        raise RestoreError(
            f"{name} is computed by the model in its forward, and is a plain tensor in the graph: expected a parametrization that "
            "can take a value (right_inverse); or remove the computation first"
        )
    held: Any = owner.get_submodule(f"parametrizations.{attribute}")
    before = {key: _kept_alike(old.detach(), value.dim(), kept) for key, old in held.named_parameters(recurse=False)}
    if _gives(owner, attribute, value, before):
        return
    try:
        setattr(owner, attribute, value.detach().clone())
        found = getattr(owner, attribute).shape
    except Exception as error:  # of any parametrization
        raise RestoreError(
            f"{name}: its parametrization does not take a value of shape {tuple(value.shape)}: {error}"
        ) from error
    if set(before) == _NORM_AND_DIRECTION:  # of which only the first need change
        norms, signs = held.original0.detach(), torch.where(before["original0"] < 0, -1.0, 1.0).to(value)
        if norms.shape == signs.shape and not _gives(
            owner, attribute, value, {"original0": norms * signs, "original1": before["original1"]}
        ):
            _gives(owner, attribute, value, {"original0": norms * signs, "original1": value * signs})
    if found != value.shape:
        raise RestoreError(f"{name}: its parametrization does not give back what it takes")


def _spectral(owner: nn.Module, attribute: str) -> Any:
    """Returns what a weight under spectral norm alone is made of, None if it is of something else."""
    if not parametrize.is_parametrized(owner, attribute):
        return None
    held: Any = owner.get_submodule(f"parametrizations.{attribute}")
    return held if len(held) == 1 and isinstance(held[0], _SpectralNorm) and held.original.dim() > 1 else None


def _normed(held: Any, value: Tensor, kept: Mapping[int, Ids]) -> None:
    """Has spectral norm give a value of its weight, ``[...]``, by the norm and the vectors that it has, cut.

    ``weight / (u @ weight @ v)``: what is left of ``u`` gets the factor with which the norm is what it was, until training steps
    both vectors, as it would those of a weight with zeros.
    """
    norm, old = held[0], held.original.detach()
    first = norm.dim
    sigma = norm._u @ (old.movedim(first, 0).flatten(1) @ norm._v)
    weight = value.detach() * sigma
    vector = norm._v.reshape(old.movedim(first, 0).shape[1:])
    dims = [dim for dim in range(old.dim()) if dim != first]
    u = _kept(norm._u, {0: kept[first]} if first in kept else {})
    v = _kept(vector, {at: kept[dim] for at, dim in enumerate(dims) if dim in kept}).reshape(-1)
    norm._u, norm._v = u * (sigma / (u @ (weight.movedim(first, 0).flatten(1) @ v))), v
    held._parameters["original"] = _like(held._parameters["original"], weight)


def _kept_alike(tensor: Tensor, dims: int, kept: Mapping[int, Ids]) -> Tensor:
    """Returns what is left of a tensor, ``[...]``, that a weight of ``dims`` dimensions is made of, where its dimensions are the weight's."""
    return _kept(tensor, kept) if tensor.dim() == dims else tensor


def _gives(owner: nn.Module, attribute: str, value: Tensor, tensors: Mapping[str, Tensor]) -> bool:
    """Has a weight be made of other tensors if that gives a value, ``[...]``; returns whether it does."""
    held: Any = owner.get_submodule(f"parametrizations.{attribute}")
    old = {key: held._parameters[key] for key in tensors}
    held._parameters.update({key: _like(old[key], tensor) for key, tensor in tensors.items()})
    try:
        found = getattr(owner, attribute)
        same = found.shape == value.shape and torch.allclose(
            found, value, rtol=1e-5, atol=1e-6 * float(value.detach().abs().max())
        )
    except Exception:  # of any parametrization
        same = False
    if not same:
        held._parameters.update(old)
    return same

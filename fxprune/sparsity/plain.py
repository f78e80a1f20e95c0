"""A plain copy of a model in training, whatever it is wrapped in or spread over."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fxprune._base.copies import copied
from fxprune._base.errors import PlanError
from fxprune._base.names import fetch, layer_of
from fxprune.capturing.source import unwrapped
from fxprune.sparsity import shards


def inner(model: nn.Module) -> nn.Module:
    """Returns the model inside `torch.compile`, data parallelism or an average of weights."""
    while True:
        found = unwrapped(model)
        found = found.module if isinstance(found, AveragedModel) else found
        if found is model:
            return found
        model = found


def skeleton(model: nn.Module) -> nn.Module:
    """Returns a copy of a model with its parameters on the meta device: it takes no memory for them."""
    bare = {
        id(own): nn.Parameter(torch.empty_like(own, device="meta"), requires_grad=own.requires_grad)
        for own in model.parameters()
    }
    return copied(model, bare)


def plain_copy(model: nn.Module, bare: nn.Module) -> nn.Module:
    """Returns a copy of a model with whole tensors; of one that is sharded every process must ask, and each gets all of it.

    Args:
        model: as it is trained, without wrappers; it stays as it is.
        bare: its `skeleton` from before it was sharded.
    """
    if not any(shards.is_sharded(tensor) for tensor in model.parameters()):
        return copied(model)
    found, made = copied(bare), dict[int, nn.Parameter]()
    for name, own in found.named_parameters(remove_duplicate=False):
        if id(own) not in made:
            made[id(own)] = nn.Parameter(shards.whole(fetch(model, name)).clone(), requires_grad=own.requires_grad)
    for name, own in list(found.named_parameters(remove_duplicate=False)):
        found.get_submodule(layer_of(name)).register_parameter(name.rpartition(".")[2], made[id(own)])
    with torch.no_grad():
        for name, buffer in found.named_buffers():
            buffer.copy_(shards.whole(fetch(model, name)))
    for one, other in zip(found.modules(), model.modules(), strict=True):
        one.training = other.training
    return found


def check_alike(model: nn.Module, bare: nn.Module) -> None:
    """Makes sure that a model has the tensors of the one that the schedule is for.

    Raises:
        PlanError: it has not; names the first that differs.
    """
    wanted, got = _shapes(bare), _shapes(model)
    if odd := sorted(name for name in {*wanted, *got} if wanted.get(name) != got.get(name)):
        want, has = (shapes.get(odd[0], "nothing") for shapes in (wanted, got))
        raise PlanError(
            f"the model is not the one that the schedule is for: {odd[0]}: expected {want}, got {has}: give the model that "
            "Schedule was made with, a wrapper of it or a copy"
        )


def _shapes(model: nn.Module) -> dict[str, list[int]]:
    tensors: chain[tuple[str, Tensor]] = chain(model.named_parameters(), model.named_buffers())
    return {name: list(tensor.shape) for name, tensor in tensors}

"""A plain copy of a model in training, whatever it is wrapped in or spread over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fxprune._base.copies import copied
from fxprune._base.errors import PlanError
from fxprune._base.sharded import gathered
from fxprune.capturing.source import unwrapped


def inner(model: nn.Module) -> nn.Module:
    """Returns the model inside `torch.compile`, data parallelism or an average of weights."""
    while True:
        found = unwrapped(model)
        found = found.module if isinstance(found, AveragedModel) else found
        if found is model:
            return found
        model = found


def plain_copy(model: nn.Module) -> nn.Module:
    """Returns a copy of a model with whole tensors; of one that is sharded every process must ask, and each gets all of it."""
    whole = gathered(model)
    return copied(model) if whole is model else whole


def check_alike(model: nn.Module, wanted: Mapping[str, Sequence[int]]) -> None:
    """Makes sure that a model has the tensors of the one that the schedule is for.

    Args:
        model: without wrappers.
        wanted: that one's `shapes`.

    Raises:
        PlanError: it has not; names the first that differs.
    """
    got = shapes(model)
    if odd := sorted(name for name in {*wanted, *got} if wanted.get(name) != got.get(name)):
        want, has = (each.get(odd[0], "nothing") for each in (wanted, got))
        raise PlanError(
            f"the model is not the one that the schedule is for: {odd[0]}: expected {want}, got {has}: give the model that "
            "Schedule was made with, a wrapper of it or a copy"
        )


def shapes(model: nn.Module) -> dict[str, list[int]]:
    """Returns the shape of each of a model's tensors by its name, that of the whole where it is sharded."""
    tensors: chain[tuple[str, Tensor]] = chain(model.named_parameters(), model.named_buffers())
    return {name: list(tensor.shape) for name, tensor in tensors}

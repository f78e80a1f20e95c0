"""Copies of models as they are, with whatever they keep of what they computed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import chain
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fxprune._base.pages import is_mapped

M = TypeVar("M")


def copied(model: M, shared: Mapping[int, Any] | None = None) -> M:
    """Returns a deep copy of a model; a tensor that it keeps of a computation has no history in the copy, one that is mapped is shared.

    Args:
        model: stays as it is.
        shared: what is not copied, by its id.
    """
    in_files = _in_files(model) if isinstance(model, nn.Module) else {}
    with _Detached():
        return copy.deepcopy(model, {**in_files, **(shared or {})})


def copied_of(model: nn.Module, shared: Mapping[int, Any]) -> set[int]:
    """Returns the ids of what a copy of a model copies: all that it reaches, wherever it is kept, but by way of what is shared."""
    memo = dict(shared)
    with _Detached():
        copy.deepcopy(model, memo)
    return memo.keys() - shared.keys()


def _in_files(model: nn.Module) -> dict[int, Tensor]:
    """Returns others over the same memory of the tensors of a model that are mapped, by their ids."""
    return {
        id(own): nn.Parameter(own.detach(), own.requires_grad) if isinstance(own, nn.Parameter) else own.detach()
        for own in chain(model.parameters(), model.buffers())
        if is_mapped(own)
    }


class _Detached(TorchFunctionMode):
    """Has copies made of tensors that torch makes none of: those with a history."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))

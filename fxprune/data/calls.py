"""Calls: the arguments that a model, or a part of it, is called with."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from inspect import BoundArguments, Signature
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune._base.modes import lent

#: (args, kwargs)
Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


def calls_of(model: nn.Module, names: Iterable[str], call: Call) -> dict[str, list[Call]]:
    """Returns the calls that each submodule gets in one evaluation-mode call of the model, tensors copied."""
    found: dict[str, list[Call]] = {name: [] for name in names}
    with ExitStack() as stack:
        stack.enter_context(lent(model, call))
        for name in found:

            def note(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                found[name].append(pytree.tree_map_only(Tensor, lambda x: x.detach().clone(), (args, kwargs)))

            stack.enter_context(model.get_submodule(name).register_forward_pre_hook(note, with_kwargs=True))
        model(*call[0], **call[1])
    return found


def tensors_of(values: Any) -> list[Tensor]:
    """Returns the tensors, ``[...]`` each, in a nest of containers, in order."""
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def bound_call(signature: Signature, arguments: Mapping[str, Any]) -> Call:
    """Returns the call that gives arguments by name to a function that takes at least these."""
    given = OrderedDict((name, arguments[name]) for name in signature.parameters if name in arguments)
    bound = BoundArguments(signature, given)
    return bound.args, bound.kwargs

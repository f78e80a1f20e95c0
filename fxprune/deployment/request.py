"""The call that a file is made for: the user's example, or the one that the model was compiled with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune._base.errors import ExportError, FxpruneError, brief
from fxprune.capturing.normalize.dtypes import main_dtype
from fxprune.data.calls import Call, bound_call, calls_of, tensors_of
from fxprune.data.checks import device_of
from fxprune.data.example import TensorSpec
from fxprune.results.attached import report_if_any


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What is to be exported, and how it is called.

    Attributes:
        module: the model, or a part of it.
        call: one call.
        filled: whether the call holds values of the user's; else zeros.
        varying: for each tensor of the call the dimensions that are free in the model; empty if unknown, or if the
            call has other tensors.
    """

    module: nn.Module
    call: Call
    filled: bool
    varying: tuple[tuple[int, ...], ...]


def requested(model: nn.Module, example: Any, part: str | None) -> Request:
    """Returns what is to be exported: with the example's call, or the one that the model was compiled with.

    Raises:
        ExportError: the example has no usable form, there is no such part, or no call is known.
    """
    call = None if example is None else _given(example)
    module = model if part is None else _submodule(model, part)
    recorded = _recorded(model, part)
    if call is not None and part is not None:
        call = _call_within(model, part, call)
    elif call is None and recorded is None:
        raise ExportError(_unknown(model, part))
    call = call or _zeros(module, recorded)
    specs = [x for x in pytree.tree_leaves(recorded) if isinstance(x, TensorSpec)]
    ranks = [x.ndim for x in tensors_of(call)]
    varying = tuple(spec.dynamic for spec in specs) if ranks == [len(spec.shape) for spec in specs] else ()
    return Request(module, call, example is not None, varying)


@contextmanager
def as_example() -> Iterator[None]:
    """Raises what a model says to the user's example as an error that names the example.

    Raises:
        ExportError: the model does not take it.
    """
    try:
        yield
    except FxpruneError as error:
        raise ExportError(f"example: {error}") from error
    except Exception as error:  # of the model's own code
        raise ExportError(f"example: the model fails on it: {brief(error)}") from error


def _zeros(module: nn.Module, recorded: Any) -> Call:
    """Returns the recorded call with zeros of the module's dtype."""
    device, dtype = device_of(module), main_dtype(module.parameters())

    def zeros(spec: TensorSpec) -> Tensor:
        made = spec.zeros(device, 0)
        return made.to(dtype) if dtype is not None and made.is_floating_point() else made

    return _by_name(module, *pytree.tree_map_only(TensorSpec, zeros, recorded))


def _given(example: Any) -> Call:
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, tuple):
        pair = len(example) == 2 and isinstance(example[0], tuple) and isinstance(example[1], dict)
        return (example[0], dict(example[1])) if pair else (example, {})
    raise ExportError(
        "example: expected a tensor, a tuple of arguments, a dict of keyword arguments or (args, kwargs), "
        f"got {type(example).__name__}"
    )


def _submodule(model: nn.Module, part: str) -> nn.Module:
    try:
        return model.get_submodule(part)
    except AttributeError as error:
        raise ExportError(f"part={part!r}: the model has no such submodule") from error


def _call_within(model: nn.Module, part: str, call: Call) -> Call:
    with as_example():
        found = calls_of(model, [part], call)[part]
    if not found:
        raise ExportError(f"part={part!r}: the model does not call it on the example")
    return found[0]


def islands_of(model: nn.Module) -> tuple[str, ...]:
    """Returns the parts that a model was compiled in; none if it was compiled whole, or not at all."""
    found = report_if_any(model)
    return () if found is None else found.islands


def _recorded(model: nn.Module, part: str | None) -> Call | None:
    """Returns the call that a model, or a part of it, was compiled with: a `TensorSpec` for each tensor."""
    found, islands = report_if_any(model), islands_of(model)
    example = None if found is None or found.plan is None else found.plan.example
    if example is None or not example.structure or (part not in (None, *islands)) or (part is None and islands):
        return None
    arguments = pytree.tree_unflatten(example.leaves, pytree.treespec_loads(example.structure))
    if part in islands:
        args, kwargs = arguments["calls"][islands.index(part)][0]
        return tuple(args), dict(kwargs)
    return bound_call(signature(model.forward), arguments)


def _unknown(model: nn.Module, part: str | None) -> str:
    if part is not None:
        return f"part={part!r}: no call of it is known: pass example=, a call of the model"
    if islands := islands_of(model):
        return (
            "the model was compiled in parts, so that no call of the whole is known: pass example=, or "
            f"export a part: part={islands[0]!r}"
        )
    return f"{type(model).__name__} was not compiled by fxprune, so that no call of it is known: pass example="


def _by_name(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Returns a call without what is no tensor: a single argument by position, several by name.

    A call that needs more than that stays as it is.
    """
    known = signature(model.forward)
    given = known.bind(*args, **kwargs).arguments
    collector = next((p.name for p in known.parameters.values() if p.kind is Parameter.VAR_KEYWORD), "")
    given |= given.pop(collector, {})
    tensors = {name: value for name, value in given.items() if tensors_of(value)}
    try:
        known.bind(**tensors)
    except TypeError:  # another argument has to be there, or one cannot be given by name
        return args, kwargs
    if len(tensors) == 1 and next(iter(known.parameters)) in tensors:
        return tuple(tensors.values()), {}
    return (), tensors

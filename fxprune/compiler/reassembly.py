"""Puts pruned islands back into the model that they came from, and compares it with one of masked twins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune._base.copies import copied
from fxprune._base.errors import CaptureError
from fxprune._base.modes import lent
from fxprune._base.names import fetch
from fxprune.capturing.captured import Captured, capture
from fxprune.compiler.islands import Islands, whole_of
from fxprune.coupling.interpreter import couple
from fxprune.coupling.selection import Selection
from fxprune.data.calls import Call
from fxprune.results.certificate import Certificate
from fxprune.results.plan import Plan
from fxprune.rewriting.emission import emitted
from fxprune.rewriting.planning import selection_of
from fxprune.rewriting.pruned import PrunedModule
from fxprune.rewriting.slicing import at_full_size
from fxprune.twin.certificate import lifted, settled
from fxprune.twin.comparison import compare
from fxprune.twin.interpreter import Run

_CONSTANTS = (bool, int, float, complex, str, bytes, Enum, type(None), torch.dtype, torch.device)


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """One part, what goes of it, and the pruned module that takes its place."""

    selection: Selection
    pruned: PrunedModule


def put_back(
    model: nn.Module, plan: Plan, pruned: nn.Module, calls: Sequence[Sequence[Call]], home: Islands | None = None
) -> tuple[nn.Module, Callable[[Call], Certificate]]:
    """Returns a copy of the model in which pruned parts stand in for their originals, and what compares it.

    Args:
        model: the whole.
        plan: how its parts, ``plan.islands``, are pruned.
        pruned: `Islands`, pruned.
        calls: of each part; sizes that differ among them, the batch, and the extent of feature maps, stay free.
        home: the same parts in their own classes, which are to stand in instead.

    Returns:
        The copy, and a function of a call of the model that compares it with a copy in which masked twins stand in for the
        parts; it raises `VerificationError` where they differ.
    """
    state = pruned.state_dict()
    first = _first_names(model)
    found = {name: _part(model, name, mine, plan, state, first) for name, mine in zip(plan.islands, calls, strict=True)}
    parts = {name: part for name, part in found.items() if part is not None}
    ours = {name: part.pruned if home is None else home.get_submodule(name) for name, part in parts.items()}
    shared = _shared(model, ours)
    result = _with_parts(model, ours, shared) if home is None else whole_of(home).eval()

    def in_precision(call: Call, dtype: torch.dtype | None) -> Certificate:
        twins: dict[str, nn.Module] = {name: _MaskedTwin(part, dtype) for name, part in parts.items()}
        if dtype is None:
            return _compared(_with_parts(model, twins, shared), result, call)
        exact = {name: _Within(lifted(part, dtype), dtype) for name, part in ours.items()}
        twins = {name: _Within(twin, dtype) for name, twin in twins.items()}
        return _compared(_with_parts(model, twins, shared), _with_parts(model, exact, shared), call)

    return result, lambda call: settled(partial(in_precision, call))


def side_by_side(result: nn.Module, selection: Selection, names: Sequence[str]) -> PrunedModule:
    """Returns the one graph of all parts, with the values that they have in a model that they were put back into.

    Args:
        result: what `put_back` returned, whatever its values have become.
        selection: what went of the parts, captured together.
        names: of the parts.
    """
    made, held = emitted(selection), selection.coupling.captured.held
    with torch.no_grad():
        for tensor, value in made.state_dict().items():
            if tensor in held or any(tensor.startswith(f"{name}.") for name in names):
                value.copy_(fetch(result, tensor))
    return made


def put_in_place(home: Islands, result: nn.Module, names: Sequence[str]) -> nn.Module:
    """Returns the model that holds some parts in their own classes, all else with the values that it has in a model of graphs."""
    whole = whole_of(home).eval()
    values = result.state_dict()
    with torch.no_grad():
        for tensor, value in whole.state_dict().items():
            if not any(tensor.startswith(f"{name}.") for name in names):
                value.copy_(values[tensor])
    return whole


def _first_names(model: nn.Module) -> dict[int, str]:
    """Returns the first name of every tensor below the model's children, by its id: that which `Islands` has for it."""
    found: dict[int, str] = {}
    for prefix, child in model.named_children():
        for name, tensor in (*child.named_parameters(prefix), *child.named_buffers(prefix)):
            found.setdefault(id(tensor), name)
    return found


def _shared(model: nn.Module, parts: Mapping[str, nn.Module]) -> dict[int, Tensor]:
    """Returns the tensors of pruned parts that are as large as before, by the ids of the originals; what parts share is made one.

    The rest of the model may reach an original by another name, or in another part: there the copy has the same tensor.
    """
    found: dict[int, Tensor] = {}
    for name, part in parts.items():
        own = model.get_submodule(name)
        originals = {
            **dict(own.named_parameters(remove_duplicate=False)),
            **dict(own.named_buffers(remove_duplicate=False)),
        }
        for path, module in part.named_modules():
            for tensors in (module._parameters, module._buffers):
                for tensor, value in tensors.items():
                    old = originals.get(f"{path}.{tensor}".lstrip("."))
                    if value is not None and old is not None and old.shape == value.shape:
                        tensors[tensor] = found.setdefault(id(old), value)
    return found


def _with_parts(model: nn.Module, parts: Mapping[str, nn.Module], shared: Mapping[int, Tensor]) -> nn.Module:
    """Returns a copy of the model in which parts stand in for the originals wherever it holds those, in a plain list too."""
    whole = copied(model, {**shared, **{id(model.get_submodule(name)): part for name, part in parts.items()}})
    for name, part in parts.items():
        whole.set_submodule(name, part)
    return whole


def _part(
    model: nn.Module,
    name: str,
    calls: Sequence[Call],
    plan: Plan,
    state: Mapping[str, Tensor],
    first: Mapping[int, str],
) -> _Part | None:
    """Returns a part with the recovered weights in place, which ``state`` has by ``first`` names; None if nothing of it goes."""
    module = model.get_submodule(name)
    inside = {
        tensor.removeprefix(f"{name}."): axes for tensor, axes in plan.keep.items() if tensor.startswith(f"{name}.")
    }
    if not inside:
        return None
    captured = _captured_freely(module, calls)
    keep = {captured.ties.get(tensor, tensor): axes for tensor, axes in inside.items()}
    coupling = couple(captured)
    selection = selection_of(coupling, replace(plan, keep=keep))
    made = emitted(selection)
    own = module.state_dict(keep_vars=True)
    with torch.no_grad():
        for tensor, value in made.state_dict().items():
            full = f"{name}.{tensor}"
            value.copy_(state[full] if full in state else state[first[id(own[tensor])]])
    return _Part(selection, made)


def _captured_freely(part: nn.Module, calls: Sequence[Call]) -> Captured:
    """Captures a part so that feature maps may have any extent, where it allows that."""
    grown = pytree.tree_map_only(Tensor, _grown, calls[0])
    try:
        return capture(part, *calls[0], batches=[*calls[1:], grown])
    except CaptureError:
        return capture(part, *calls[0], batches=calls[1:])


def _grown(value: Tensor) -> Tensor:
    spatial = value.dim() > 3 and value.is_floating_point()
    return value.new_empty([*value.shape[:2], *(size + 1 for size in value.shape[2:])]) if spatial else value


class _MaskedTwin(nn.Module):
    """Computes what a pruned part must give."""

    def __init__(self, part: _Part, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.call = part.selection.coupling.captured.call
        self.run = Run(part.selection.with_tensors(at_full_size(part.selection, part.pruned)), dtype)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.call.unflatten(self.run(self.call.flatten(args, kwargs)))


class _Within(nn.Module):
    """Runs a module of one precision among others: what comes is lifted, what leaves has the precision of what came."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = inner, dtype

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        floats = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.is_floating_point()]
        args, kwargs = _cast((args, kwargs), self.dtype)
        return _cast(self.inner(*args, **kwargs), floats[0].dtype if floats else self.dtype)


def _cast(values: Any, dtype: torch.dtype) -> Any:
    return pytree.tree_map_only(Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, values)


def _compared(twin: nn.Module, result: nn.Module, call: Call) -> Certificate:
    outputs: list[list[Any]] = []
    for model in (twin, result):
        with lent(model, call):
            outputs.append(_leaves(model(*call[0], **call[1])))
    return compare(outputs[0], outputs[1])


def _leaves(output: Any, seen: frozenset[int] = frozenset()) -> list[Any]:
    """Returns the tensors and constants of an output; objects that are no containers to torch are opened, each once.

    What has no content to compare, such as a function, is left out.
    """
    found: list[Any] = []
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc":
            found.append(torch.from_numpy(leaf))
        elif isinstance(leaf, (Tensor, *_CONSTANTS)):
            found.append(leaf)
        elif hasattr(leaf, "__dict__") and not callable(leaf) and id(leaf) not in seen:
            found += _leaves(dict(vars(leaf)), seen | {id(leaf)})
    return found

"""Islands: the largest parts that can be captured of a model that cannot be captured whole, such as a detector.

Each is pruned between its own inputs and outputs, which stay as they are; the rest of the model stays as it is and calls
them as before. One budget is for all of them together.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.batch import Batch
from fxprune.capture import Captured, capture
from fxprune.capture.export import untouched
from fxprune.channels import Mask
from fxprune.coupling import Coupling, couple
from fxprune.errors import CaptureError
from fxprune.iterate import at_full_size
from fxprune.plan import Plan
from fxprune.record import removed_by
from fxprune.rewrite.emit import emit
from fxprune.rewrite.pruned import PrunedModule
from fxprune.rewrite.slice import slice_graph
from fxprune.verify import Certificate, Run, compare, lifted

#: (args, kwargs)
Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


def find_islands(model: nn.Module, call: Call) -> tuple[str, ...]:
    """Returns the names of the largest submodules with parameters that can be captured by themselves, front to back.

    Args:
        model: a model that cannot be captured whole.
        call: one call of it.
    """
    found: list[str] = []
    names = _children(model, "")
    while names:
        calls = calls_of(model, names, call)
        within = []
        for name in names:
            part = model.get_submodule(name)
            if not _can_be_captured(part, calls[name]) or not _stands_alone(model, name, call):
                within += _children(part, f"{name}.")
            elif next(part.children(), None) is not None:  # a single layer has nothing that could go
                found.append(name)
        names = within
    order = [name for name, _ in model.named_modules()]
    return tuple(sorted(found, key=order.index))


def _children(module: nn.Module, prefix: str) -> list[str]:
    return [prefix + name for name, child in module.named_children() if any(True for _ in child.parameters())]


def _can_be_captured(part: nn.Module, calls: Sequence[Call]) -> bool:
    leaves = pytree.tree_leaves(calls)
    plain = all(isinstance(leaf, (Tensor, int, float, bool, str, type(None))) for leaf in leaves)
    if not calls or not plain or any(isinstance(leaf, Tensor) and not leaf.numel() for leaf in leaves):
        return False
    try:
        capture(part, *calls[0], batches=calls[1:])
    except CaptureError:
        return False
    return True


class _Opaque(nn.Module):
    """Runs a module, and shows nothing else of it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.__dict__["inner"] = inner  # no submodule: the rest of the model must not find it

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__["inner"](*args, **kwargs)


def _stands_alone(model: nn.Module, name: str, call: Call) -> bool:
    """Returns whether the rest of the model only calls a part, and reads nothing inside it."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    shell = copy.deepcopy(model, tensors)  # shares all tensors
    shell.set_submodule(name, _Opaque(shell.get_submodule(name)))
    try:
        with untouched(shell, training=False), torch.no_grad():
            shell(*call[0], **call[1])
    except Exception:  # whatever the model does without what it looks for
        return False
    return True


def calls_of(model: nn.Module, names: Iterable[str], call: Call) -> dict[str, list[Call]]:
    """Returns the calls that each submodule gets in one evaluation-mode call of the model, tensors copied."""
    found: dict[str, list[Call]] = {name: [] for name in names}
    with ExitStack() as stack:
        stack.enter_context(untouched(model, training=False))
        stack.enter_context(torch.no_grad())
        for name in found:

            def note(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                found[name].append(pytree.tree_map_only(Tensor, lambda x: x.detach().clone(), (args, kwargs)))

            part = model.get_submodule(name)
            stack.enter_context(part.register_forward_pre_hook(note, with_kwargs=True))
        model(*call[0], **call[1])
    return found


class Islands(nn.Module):
    """The parts side by side, under the names that they have in the model.

    Args:
        model: the whole; its submodules are shared, not copied.
        names: of the parts.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)
        self._names = tuple(names)
        self.training = model.training

    def forward(self, calls: Sequence[Sequence[Call]]) -> list[list[Any]]:
        """Returns what each part gives for each of its calls."""
        return [
            [self.get_submodule(name)(*args, **kwargs) for args, kwargs in mine]
            for name, mine in zip(self._names, calls, strict=True)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class IslandData:
    """Calibration data of `Islands`: the calls that the parts get when the model works on each batch.

    Attributes:
        model: the whole.
        names: of the parts.
        batches: the model's calibration data.
    """

    model: nn.Module
    names: tuple[str, ...]
    batches: Iterable[Batch]

    def __iter__(self) -> Iterator[tuple[tuple[Any, ...], Any]]:
        """Yields ``((calls,), targets)``."""
        for batch in self.batches:
            found = calls_of(self.model, self.names, (batch.args, batch.kwargs))
            yield ([found[name] for name in self.names],), batch.targets


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """One part, what goes of it, and the pruned module that takes its place."""

    captured: Captured
    coupling: Coupling
    removed: Mask
    pruned: PrunedModule


def put_back(
    model: nn.Module, names: Sequence[str], pruned: nn.Module, plan: Plan, calls: Sequence[Sequence[Call]],
    check: Call | None = None,
) -> tuple[nn.Module, Certificate | None]:  # fmt: skip
    """Returns a copy of the model in which pruned parts stand in for their originals.

    Args:
        model: the whole.
        names: of its parts.
        pruned: `Islands`, pruned.
        plan: how.
        calls: of each part; sizes that differ among them, the batch, and the extent of feature maps, stay free.
        check: a call of the model; the result is compared with a copy in which masked twins stand in for the parts.
    """
    state = pruned.state_dict()
    found = {name: _part(model, name, mine, plan, state) for name, mine in zip(names, calls, strict=True)}
    parts = {name: part for name, part in found.items() if part is not None}
    result = _with_parts(model, {name: part.pruned for name, part in parts.items()})
    if check is None:
        return result, None
    twin = _with_parts(model, {name: _MaskedTwin(part) for name, part in parts.items()})
    certificate = _compared(twin, result, check)
    if certificate.verified is False:  # a fault, or rounding that tips a threshold? float64 tells
        twins = {name: _InDouble(_MaskedTwin(part, torch.float64)) for name, part in parts.items()}
        exact = {name: _InDouble(lifted(part.pruned, torch.float64)) for name, part in parts.items()}
        certificate = _compared(_with_parts(model, twins), _with_parts(model, exact), check)
    return result, certificate


def _with_parts(model: nn.Module, parts: Mapping[str, nn.Module]) -> nn.Module:
    whole = copy.deepcopy(model)
    for name, part in parts.items():
        whole.set_submodule(name, part)
    return whole


def _part(
    model: nn.Module, name: str, calls: Sequence[Call], plan: Plan, state: Mapping[str, Tensor]
) -> _Part | None:
    """Returns a part with the recovered weights in place; None if nothing of it goes."""
    module = model.get_submodule(name)
    inside = {
        tensor.removeprefix(f"{name}."): axes
        for tensor, axes in plan.keep.items()
        if tensor.startswith(f"{name}.")
    }
    if not inside:
        return None
    captured = _captured_freely(module, calls)
    keep = {captured.ties.get(tensor, tensor): axes for tensor, axes in inside.items()}
    coupling = couple(captured)
    removed = removed_by(coupling, replace(plan, keep=keep))
    made = emit(captured, slice_graph(coupling, removed))
    with torch.no_grad():
        for tensor, value in made.state_dict().items():
            value.copy_(state[f"{name}.{tensor}"])
    return _Part(captured, coupling, removed, made)


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
        self.call = part.captured.call
        tensors = at_full_size(part.coupling, part.removed, part.pruned)
        self.run = Run(part.coupling, part.removed, tensors, dtype)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.call.unflatten(self.run(self.call.flatten(args, kwargs)))


class _InDouble(nn.Module):
    """Runs a module of float64 among others: what comes is lifted, what leaves has the precision of what came."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        floats = [
            x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.is_floating_point()
        ]
        args, kwargs = _cast((args, kwargs), torch.float64)
        return _cast(self.inner(*args, **kwargs), floats[0].dtype if floats else torch.float64)


def _cast(values: Any, dtype: torch.dtype) -> Any:
    return pytree.tree_map_only(Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, values)


def _compared(twin: nn.Module, result: nn.Module, call: Call) -> Certificate:
    with torch.no_grad(), untouched(twin, training=False), untouched(result, training=False):
        expected, got = (pytree.tree_leaves(m(*call[0], **call[1])) for m in (twin, result))
    return compare(expected, got)

"""Islands: the largest parts that can be captured of a model that cannot be captured whole, such as a detector.

Each is pruned between its own inputs and outputs, which stay as they are; the rest of the model stays as it is and calls
them as before. One budget is for all of them together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from fxprune._base.copies import copied, copied_of
from fxprune._base.errors import CaptureError
from fxprune._base.modes import untouched
from fxprune._base.names import layer_of
from fxprune.capturing.call import same
from fxprune.capturing.captured import Captured, capture
from fxprune.capturing.source import unwrapped
from fxprune.compiler.freeing import freely_captured
from fxprune.data.batch import Batch, bad_batch, shown
from fxprune.data.batches import Batches
from fxprune.data.calls import Call, calls_of
from fxprune.data.checks import device_of


def capture_or_parts(
    model: nn.Module | ExportedProgram, batches: Batches, dynamic_shapes: Any = None, strict: bool = False
) -> tuple[Captured | None, tuple[str, ...]]:
    """Returns the captured model; or None, and the names of the parts that can be captured where the whole cannot.

    Args:
        model: what ``fxprune.compile`` was given.
        batches: its calls; what varies among them is dynamic.
        dynamic_shapes: as ``torch.export.export`` takes it.
        strict: the whole or nothing.

    Raises:
        CaptureError: neither the model nor any part of it can be captured.
    """
    calls = [(batch.args, batch.kwargs) for batch in batches.shapes(among=16)]
    first = batches.first()
    call = first.args, first.kwargs
    try:
        return of_parts(freely_captured(model, *call, dynamic_shapes=dynamic_shapes, batches=calls)), ()
    except CaptureError:
        if isinstance(model, ExportedProgram) or strict or any(p.is_meta for p in model.parameters()):
            raise  # parts are found by running the model
        parts = find_islands(unwrapped(model), call)
        if not parts:
            raise
        return None, parts


def captured_islands(model: nn.Module, names: tuple[str, ...], batches: Batches) -> Captured:
    """Returns the parts of a model, captured together."""
    first = Batches(IslandData(model, names, batches), device=device_of(model)).first()
    return of_parts(freely_captured(Islands(model, names), first.args, first.kwargs))


def of_parts(captured: Captured) -> Captured:
    """Returns captured parts with nothing said of what lies outside them, and held what the model reaches from there.

    What is captured whole is returned as it is.
    """
    islands = captured.model
    if not isinstance(islands, Islands):
        return captured
    held: dict[str, str] = {}
    for name in islands_of(islands):
        why = f"the model reaches it outside its part {name!r} as well"
        held |= {captured.ties.get(tensor, tensor): why for tensor in _reached(whole_of(islands), name)}
    for made, sources in captured.folded.items():
        held.update((made, held[source]) for source in sources if source in held)
    inside = tuple(f"{name}." for name in islands_of(islands))
    return replace(captured, held=held, unused=frozenset(x for x in captured.unused if x.startswith(inside)))


def _reached(model: nn.Module, name: str) -> list[str]:
    """Returns the tensors of a part's layers of which the rest of the model, other parts too, reaches one, by whatever way."""
    part, tensors = model.get_submodule(name), _tensors(model)
    inside = {f"{name}.{tensor}": value for tensor, value in _tensors(part).items()}
    ids = {id(value) for value in inside.values()}
    apart = {id(value): value for value in tensors.values() if id(value) not in ids}
    found = copied_of(model, {id(part): part, **apart})
    layers = {layer_of(tensor) for tensor, value in inside.items() if id(value) in found}
    return [tensor for tensor in inside if layer_of(tensor) in layers]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    own = module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)
    return {**dict(own[0]), **dict(own[1])}


def find_islands(model: nn.Module, call: Call) -> tuple[str, ...]:
    """Returns the names of the largest submodules with parameters that can be captured by themselves, front to back.

    Args:
        model: a model that cannot be captured whole; it stays as it is.
        call: one call of it.

    Raises:
        CaptureError: the model cannot be copied.
    """
    found: list[nn.Module] = []
    first = {module: name for name, module in model.named_modules()}  # of those with several names
    modules = _children(model)
    while modules:
        names = {module: first.pop(module) for module in modules if module in first}
        calls = calls_of(model, names.values(), call)
        modules = []
        for part, name in names.items():
            if not _can_be_captured(part, calls[name]) or not _stands_alone(model, name, call, len(calls[name])):
                modules += _children(part)
            elif next(part.children(), None) is not None:  # a single layer has nothing that could go
                found.append(part)
    # what lies in another one has been found by another name
    inside = {inner for part in found for inner in part.modules() if inner is not part}
    return tuple(name for name, module in model.named_modules() if module in found and module not in inside)


def _children(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.children() if any(True for _ in child.parameters())]


def _can_be_captured(part: nn.Module, calls: Sequence[Call]) -> bool:
    leaves = pytree.tree_leaves(calls)
    plain = all(isinstance(leaf, (Tensor, int, float, bool, str, type(None))) for leaf in leaves)
    if not calls or not plain or any(isinstance(leaf, Tensor) and not leaf.numel() for leaf in leaves):
        return False
    try:
        capture(part, *calls[0], batches=calls[1:])
    except (CaptureError, RuntimeError):  # the tensors of a vmap have no life outside it
        return False
    return True


class _Opaque(nn.Module):
    """Runs a module, and shows nothing else of it but how often it did."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.__dict__["inner"] = inner  # no submodule: the rest of the model must not find it
        self.times = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.times += 1
        return self.__dict__["inner"](*args, **kwargs)


def _stands_alone(model: nn.Module, name: str, call: Call, times: int) -> bool:
    """Returns whether the rest of the model only calls a part, that of a copy in a copy, and reads nothing inside it."""
    part = model.get_submodule(name)
    opaque = _Opaque(_copied(part, model))
    shell = _copied(model, model, {id(part): opaque})
    try:
        with (
            untouched(shell, training=False),
            untouched(opaque.__dict__["inner"], training=False),
            torch.no_grad(),
            torch.random.fork_rng(devices=[]),
        ):
            shell(*call[0], **call[1])
            return opaque.times >= times  # else a function that it holds has the original's in it
    except Exception:  # whatever the model does without what it looks for
        return False


def _copied(module: nn.Module, model: nn.Module, stand_ins: Mapping[int, Any] | None = None) -> nn.Module:
    """Returns a copy of a model, or of a module of it, that shares the parameters."""
    try:
        return copied(module, {**{id(p): p for p in model.parameters()}, **(stand_ins or {})})
    except Exception as error:  # whatever an attribute raises that cannot be copied
        raise CaptureError(
            "the model cannot be captured whole, and it cannot be copied to be captured in parts "
            f"({type(error).__name__}: {error}): keep files, locks and the like outside it"
        ) from error


class Islands(nn.Module):
    """The parts side by side, under the names that they have in the model (see `whole_of`, `islands_of`).

    Args:
        model: the whole; its submodules are shared, not copied.
        names: of the parts.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.__dict__[_OF] = model, tuple(names)  # no submodule, and no name that one of the model's may have
        for name, child in model.named_children():
            self.add_module(name, child)
        self.training = model.training

    def forward(self, calls: Sequence[Sequence[Call]]) -> list[list[Any]]:
        """Returns what each part gives for each of its calls."""
        return [
            [self.get_submodule(name)(*args, **kwargs) for args, kwargs in mine]
            for name, mine in zip(islands_of(self), calls, strict=True)
        ]


#: The attribute of `Islands` for the model and the names of its parts.
_OF = "<parts of>"


def whole_of(islands: Islands) -> nn.Module:
    """Returns the model that parts are of; of a copy, that of the copy, which holds the very same parts."""
    model: nn.Module = vars(islands)[_OF][0]
    return model


def islands_of(islands: Islands) -> tuple[str, ...]:
    """Returns the names of the parts."""
    names: tuple[str, ...] = vars(islands)[_OF][1]
    return names


@dataclass(frozen=True, slots=True, eq=False)
class IslandData:
    """Calibration data of `Islands`: the calls that the parts get when the model works on each batch.

    Attributes:
        model: the whole.
        names: of the parts.
        batches: the model's calibration data.
        known: the calls of the first batch, once it has been seen: all others must be made in the same way.
    """

    model: nn.Module
    names: tuple[str, ...]
    batches: Iterable[Batch]
    known: dict[str, list[Call]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[tuple[Any, ...], Any]]:
        """Yields ``((calls,), targets)``.

        Raises:
            CalibrationError: the parts are called in another way than by the first batch.
        """
        for index, batch in enumerate(self.batches):
            found = calls_of(self.model, self.names, (batch.args, batch.kwargs))
            for name, calls in found.items():
                _check_alike(index, name, self.known.setdefault(name, calls), calls)
            yield ([found[name] for name in self.names],), batch.targets


def _check_alike(index: int, name: str, known: Sequence[Call], calls: Sequence[Call]) -> None:
    """Makes sure that a batch has a part called as often, and with the same numbers, as the first one has.

    Raises:
        CalibrationError: it has not.
    """
    hint = "a graph is made for one way through the model: give batches that take the same one, or compile the part by itself"
    if len(calls) != len(known):
        raise bad_batch(index, f"the model calls its part {name!r} {len(calls)} times, {len(known)} by batch 0; {hint}")
    for want, got in zip(known, calls, strict=True):
        if pytree.tree_structure(want) != pytree.tree_structure(got):
            raise bad_batch(index, f"the model calls its part {name!r} with other arguments than by batch 0; {hint}")
        for a, b in zip(pytree.tree_leaves(want), pytree.tree_leaves(got), strict=True):
            if not (isinstance(a, Tensor) and isinstance(b, Tensor)) and not same(a, b):
                text = f"the model hands its part {name!r} {shown(b)}, {shown(a)} by batch 0"
                raise bad_batch(index, f"{text}; {hint}. What changes must be a tensor")

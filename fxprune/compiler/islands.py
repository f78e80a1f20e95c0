"""Islands: the largest parts that can be captured of a model that cannot be captured whole, such as a detector.

Each is pruned between its own inputs and outputs, which stay as they are; the rest of the model stays as it is and calls
them as before. One budget is for all of them together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from fxprune._base.copies import copied
from fxprune._base.errors import CaptureError
from fxprune._base.modes import untouched
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
        return freely_captured(model, *call, dynamic_shapes=dynamic_shapes, batches=calls), ()
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
    return freely_captured(Islands(model, names), first.args, first.kwargs)


def find_islands(model: nn.Module, call: Call) -> tuple[str, ...]:
    """Returns the names of the largest submodules with parameters that can be captured by themselves, front to back.

    Args:
        model: a model that cannot be captured whole; it stays as it is.
        call: one call of it.

    Raises:
        CaptureError: the model cannot be copied.
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
    except (CaptureError, RuntimeError):  # the tensors of a vmap have no life outside it
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
    shell = _copied(model)
    try:
        with untouched(shell, training=False), torch.no_grad(), torch.random.fork_rng(devices=[]):
            shell.set_submodule(name, _Opaque(shell.get_submodule(name)))
            shell(*call[0], **call[1])
    except Exception:  # whatever the model does without what it looks for
        return False
    return True


def _copied(model: nn.Module) -> nn.Module:
    """Returns a copy that shares the parameters."""
    try:
        return copied(model, {id(parameter): parameter for parameter in model.parameters()})
    except Exception as error:  # whatever an attribute raises that cannot be copied
        raise CaptureError(
            "the model cannot be captured whole, and it cannot be copied to be captured in parts "
            f"({type(error).__name__}: {error}): keep files, locks and the like outside it"
        ) from error


class Islands(nn.Module):
    """The parts side by side, under the names that they have in the model.

    Args:
        model: the whole; its submodules are shared, not copied.
        names: of the parts.

    Attributes:
        whole: the model; of a copy, that of the copy, which holds the very same parts.
    """

    whole: nn.Module

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.__dict__["whole"] = model  # no submodule: its names are this one's
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

"""What a recovery is: a small class that gives what is kept new values, so that it makes up for what goes."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from fxprune._base.defaults import MEMORY_LIMIT, RIDGE
from fxprune._base.errors import RecoveryError
from fxprune._base.given import check_factory, check_parts, check_takes, is_text
from fxprune._base.names import fetch
from fxprune._base.pages import touched
from fxprune._base.shelf import Shelf
from fxprune.coupling.selection import Selection
from fxprune.data.batch import shown
from fxprune.data.checks import flawed, non_finite
from fxprune.data.holdout import count_of
from fxprune.recovery.consumers import Consumer, find_consumers
from fxprune.recovery.gates import Gates, find_gates
from fxprune.recovery.measuring import Blocks, bytes_of, measure, parts_that_fit
from fxprune.twin.interpreter import Run
from fxprune.twin.march import marching

#: The recoveries that come with fxprune.
RecoveryName = Literal["mean_shift", "covariance", "sequential", "reconstruct", "reinit"]

#: The inputs of a captured graph, one tensor for each placeholder, batch by batch; may be gone through again.
Batches: TypeAlias = Iterable[Sequence[Tensor]]


#: So many samples for each column leave a regression little to invent.
_AMPLE = 30


@dataclass(frozen=True, slots=True, eq=False)
class Recovered:
    """What a recovery changed.

    Attributes:
        tensors: full-size replacements of parameters and buffers, by name; finite where the model's own are. What stands
            at removed coordinates does not matter otherwise.
        skipped: what was left alone, and why, a line each.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class RecoveryContext:
    """What a recovery works with.

    Attributes:
        selection: what goes of which model.
        inputs: the graph's flat inputs, batch by batch; may be gone through again and again.
        ridge: damping of regressions, as a share of the mean variance of a layer's inputs.
        tuned: it is where to look from: each layer with few samples takes what is best on some that are held out.
        memory_limit: bytes for statistics and values that are alive.
        seed: for what is drawn.
        base: full-size tensors of an equal model, ``[...]`` by name, that statistics are of and recovery begins with.
        shelves: gives by name the shelf that new tensors go to; None where they stay in memory.
    """

    selection: Selection
    inputs: Batches
    ridge: float = RIDGE
    memory_limit: int = MEMORY_LIMIT
    seed: int = 0
    base: Mapping[str, Tensor] = field(default_factory=dict)
    tuned: bool = False
    shelves: Callable[[str], Shelf] | None = None

    @cached_property
    def dense(self) -> Selection:
        """The model of which nothing goes."""
        return Selection.nothing(self.selection.coupling, self.base)

    def shelf(self, name: str) -> Shelf | None:
        """Returns where the tensors that a step of a recovery makes go, if not into memory."""
        return None if self.shelves is None else self.shelves(name)

    @property
    def start(self) -> dict[str, Tensor]:
        """What stands for tensors, ``[...]`` by name, before anything is recovered."""
        return {**self.base, **self.selection.gains, **self.selection.tensors}

    @cached_property
    def _found(self) -> tuple[list[Consumer], list[str]]:
        return find_consumers(self.selection)

    @cached_property
    def _gates(self) -> tuple[list[Gates], list[str]]:
        return find_gates(self.selection)

    @property
    def gates(self) -> Sequence[Gates]:
        """The inputs of gates that lose columns, layer by layer: of what a recurrent layer reads, and of its own state."""
        return self._gates[0]

    @property
    def consumers(self) -> Sequence[Consumer]:
        """The linear layers and convolutions that lose columns, in graph order; gates of recurrent layers are `gates`."""
        return self._found[0]

    def moments(
        self,
        *,
        covariance: bool = True,
        consumers: Sequence[Consumer] | None = None,
        hold_out: bool = False,
        rows: bool = False,
    ) -> Iterator[tuple[Consumer, Blocks]]:
        """Yields every consumer with the moments of its input in the dense model.

        They are ``mean_x[groups, columns]`` and ``xx[groups, columns, columns]``, by blocks of columns: one block, unless
        that exceeds the memory limit.

        Args:
            covariance: False for the means alone.
            consumers: some of them; by default all, gates of recurrent layers included.
            hold_out: moments of layers with few samples have some of these apart (``Moments.held``).
            rows: fewer samples than columns are kept as they are (``Moments.rows``); blocks are then of what fits so.
        """
        limit = self.memory_limit
        consumers = (*self.consumers, *self.gates) if consumers is None else consumers
        samples = self.samples(consumers)
        held = {c for c in consumers if hold_out and samples[c] < _AMPLE * c.kept.shape[1]}
        known = samples if rows else {}
        sizes = {c: {c: bytes_of(c, covariance, limit, known.get(c)) * (2 if c in held else 1)} for c in consumers}
        run = Run(self.dense)
        place = {node: i for i, node in enumerate(run.order)}
        parts = list(parts_that_fit(sorted(consumers, key=lambda c: place[c.node]), sizes.__getitem__, limit))
        with marching(run, self.inputs, limit // 2) as march:
            for number, part in enumerate(parts, 1):
                ahead = all(march.reaches(c.node) for c in part)  # several consumers may read at one node
                ways = march.to(part[-1].node, last=number == len(parts)) if ahead else None
                found = measure(
                    self.dense,
                    part,
                    self.inputs,
                    covariance=covariance,
                    memory_limit=limit,
                    held=held,
                    samples=known,
                    ways=ways,
                )
                yield from zip(part, found, strict=True)

    def samples(self, consumers: Iterable[Consumer]) -> dict[Consumer, int]:
        """Returns how many samples layers read in all batches, if each is like the one at capture."""
        info, batches = self.selection.coupling.captured.info, count_of(self.inputs)
        ends = {c: c.source if isinstance(info[c.node], list) else c.node for c in consumers}
        return {c: c.samples(info[end].example) * batches for c, end in ends.items()}

    @property
    def skipped(self) -> tuple[str, ...]:
        """What reads removed channels and cannot make up for them, and why; and shifts that nothing takes."""
        every = (*self.consumers, *self.gates)
        homeless = [f"{c.weight}: no bias or batch norm takes its shift" for c in every if c.home is None]
        return (*self.unreached, *homeless)

    @property
    def unreached(self) -> tuple[str, ...]:
        """The layers that read removed channels and are left as they are, and why."""
        return (*self._found[1], *self._gates[1])


@runtime_checkable
class Recovery(Protocol):
    """A way to recover. A class that names this one as its base has everything but a name and ``recover``.

    Attributes:
        name: how it is called in messages.
        anew: all weights are drawn anew by `finish`: nothing is there to recover, and layers on the only path may go.
    """

    if TYPE_CHECKING:  # read-only to type checkers, so that a frozen class fits

        @property
        def name(self) -> str: ...  # noqa: D102

        @property
        def anew(self) -> bool:  # noqa: D102
            return False

    else:  # a class of one's own may set them on itself or in ``__init__``
        name: str
        anew: bool = False

    def recover(self, context: RecoveryContext) -> Recovered:
        """Returns new values at full size, before anything is sliced; called without gradients."""
        ...

    def finish(self, pruned: nn.Module, seed: int) -> tuple[str, ...]:
        """Changes the emitted module in place, once it is verified; returns what was left alone, and why."""
        return ()


_PARTS = {"name": str, "anew": object, "recover": object, "finish": object}

_RECOVERIES: dict[str, Callable[[], Recovery]] = {}


def register_recovery(name: str, factory: Callable[[], Recovery]) -> None:
    """Makes a recovery available as ``recover=name``.

    Raises:
        RecoveryError: the name is taken, or no name; or the factory cannot be called without arguments.
    """
    _fill()
    check_factory(RecoveryError, "recovery", name, factory, _RECOVERIES)
    _RECOVERIES[name] = factory


@functools.cache
def _fill() -> None:
    """Registers the recoveries that come with fxprune, the first time that anybody asks."""
    importlib.import_module("fxprune.recovery.builtin")


def registered() -> tuple[str, ...]:
    """Returns every recovery's name."""
    _fill()
    return tuple(_RECOVERIES)


def recovery_of(method: str | Recovery | None) -> Recovery | None:
    """Returns a recovery by name, the recovery itself, or None for none.

    Raises:
        RecoveryError: there is no recovery of that name, or the object is none; lists the names there are.
    """
    _fill()
    if method is None:
        return None
    expected = "recover: expected a name, None or a recovery"
    if isinstance(method, str):
        if method not in _RECOVERIES:
            raise RecoveryError(f"recover must be one of {', '.join(_RECOVERIES)} or None, got {method!r}")
        expected, method = f"recover={method!r}: what is registered gives none: expected one", _RECOVERIES[method]()
    check_parts(RecoveryError, expected, method, _PARTS)
    check_takes(RecoveryError, f"recovery {method.name!r}: recover", method.recover, "context")
    check_takes(RecoveryError, f"recovery {method.name!r}: finish", method.finish, "pruned", "seed")
    return method


def fits(recovery: Recovery | None) -> bool:
    """Returns whether a recovery fits anything to the data."""
    return recovery is not None and not recovery.anew


#: The largest ridge: nothing but the mean shift is left of a regression long before it.
_STIFFEST = 1e12


def check_recovery(ridge: Any, memory_limit: Any) -> None:
    """Makes sure that the numbers that recoveries are given can be used.

    Raises:
        ValueError: a ridge or limit that is not positive, or a ridge above 1e12.
    """
    number = isinstance(ridge, Real) and not isinstance(ridge, bool)
    if not number or not 0 < ridge <= _STIFFEST:
        raise ValueError(
            f"ridge must be a positive share of the mean variance, such as 1e-2, at most 1e12, got {ridge!r:.80}"
        )
    if isinstance(memory_limit, bool) or not isinstance(memory_limit, int) or memory_limit <= 0:
        raise ValueError(f"memory_limit must be a positive number of bytes, got {memory_limit!r}")


@torch.no_grad()
def recovered(method: str | Recovery | None, context: RecoveryContext) -> Recovered:
    """Returns what a recovery changes, in the dtypes and on the devices of the model's own tensors.

    That is nothing if there is none, or nothing goes.

    Raises:
        RecoveryError: there is no such recovery, or it returned something else than `Recovered`, or what cannot stand in
            for a tensor: of another shape or kind, or not finite where the model's own is; names it.
    """
    recovery = recovery_of(method)
    if recovery is None or not context.selection.removed.any():
        return Recovered()
    result, where = recovery.recover(context), f"recovery {recovery.name!r}"
    if not isinstance(result, Recovered):
        raise RecoveryError(f"{where}: expected fxprune.Recovered, got {type(result).__name__}")
    if not isinstance(result.tensors, Mapping):
        raise RecoveryError(f"{where}: tensors: expected replacements by name, got {result.tensors!r:.80}")
    module = context.selection.coupling.captured.module
    own = {str(node.target): fetch(module, str(node.target)) for node in module.graph.find_nodes(op="get_attr")}
    if strange := [name for name in result.tensors if name not in own]:
        raise RecoveryError(f"{where}: the graph has no tensor {strange[0]!r:.80} to replace")
    tensors = {name: _replacement(value, own[name], f"{where}: {name}") for name, value in result.tensors.items()}
    return Recovered(tensors, _lines(result.skipped, f"{where}: skipped"))


def _replacement(value: Any, own: Tensor, where: str) -> Tensor:
    """Returns what stands in for a tensor, ``[...]`` as its own, once it is checked."""
    if not isinstance(value, Tensor):
        raise RecoveryError(f"{where}: expected a tensor {shown(own)}, got {type(value).__name__}")
    alike = value.dtype == own.dtype or (value.is_floating_point() and own.is_floating_point())
    if not alike or value.shape != own.shape or value.layout is not torch.strided or value.is_meta:
        got = f"{shown(value)}, {value.layout} on {value.device}"
        raise RecoveryError(f"{where}: expected a dense tensor {shown(own)} with values, got {got}")
    for each in (value, own):
        touched(each)
    new: Tensor = value.detach().to(own)
    if bool((own.isfinite() & ~new.isfinite()).any()):
        raise RecoveryError(f"{where}: expected finite numbers where the model's own are, got {non_finite(new)}")
    return new


@torch.no_grad()
def finished(recovery: Recovery, pruned: nn.Module, seed: int) -> tuple[str, ...]:
    """Lets a recovery change the emitted module, and returns what it left alone, and why.

    Raises:
        RecoveryError: it left a tensor that is no longer finite, or returned something else than lines.
    """
    before = flawed(pruned)
    left = recovery.finish(pruned, seed)
    for name, flaw in flawed(pruned).items():
        if flaw != before.get(name):
            raise RecoveryError(f"recovery {recovery.name!r}: finish: {name}: expected finite numbers, it left {flaw}")
    return _lines(left, f"recovery {recovery.name!r}: finish")


def _lines(value: Any, where: str) -> tuple[str, ...]:
    """Returns lines of text; None counts as none."""
    found = () if value is None else value
    if not isinstance(found, (tuple, list)) or not all(is_text(line) for line in found):
        raise RecoveryError(f"{where}: expected lines of text in a tuple, got {value!r:.80}")
    return tuple(found)

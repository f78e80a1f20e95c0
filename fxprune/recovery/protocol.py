"""What a recovery is: a small class that gives what is kept new values, so that it makes up for what goes."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from fxprune._base.defaults import MEMORY_LIMIT, RIDGE
from fxprune._base.errors import RecoveryError
from fxprune.coupling.selection import Selection
from fxprune.recovery.consumers import Consumer, find_consumers
from fxprune.recovery.moments import Blocks, bytes_of, measure, parts_that_fit

#: The recoveries that come with fxprune.
RecoveryName = Literal["mean_shift", "covariance", "sequential", "reconstruct", "reinit"]

#: The inputs of a captured graph, one tensor for each placeholder, batch by batch; may be gone through again.
Batches: TypeAlias = Iterable[Sequence[Tensor]]


@dataclass(frozen=True, slots=True, eq=False)
class Recovered:
    """What a recovery changed.

    Attributes:
        tensors: full-size replacements of parameters and buffers, by name; removed coordinates do not matter.
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
        memory_limit: bytes for statistics and values that are alive.
        seed: for what is drawn.
    """

    selection: Selection
    inputs: Batches
    ridge: float = RIDGE
    memory_limit: int = MEMORY_LIMIT
    seed: int = 0

    @cached_property
    def _found(self) -> tuple[list[Consumer], list[str]]:
        return find_consumers(self.selection)

    @property
    def consumers(self) -> Sequence[Consumer]:
        """The linear layers and convolutions that lose columns, in graph order."""
        return self._found[0]

    def moments(self, *, covariance: bool = True) -> Iterator[tuple[Consumer, Blocks]]:
        """Yields every consumer with the moments of its input in the dense model.

        They are ``mean_x[groups, columns]`` and ``xx[groups, columns, columns]``, by blocks of columns: one block, unless
        that exceeds the memory limit.

        Args:
            covariance: False for the means alone.
        """
        coupling, limit = self.selection.coupling, self.memory_limit
        sizes = {consumer: {consumer: bytes_of(consumer, covariance, limit)} for consumer in self.consumers}
        for part in parts_that_fit(self.consumers, sizes.__getitem__, limit):
            found = measure(coupling, part, self.inputs, covariance=covariance, memory_limit=limit)
            yield from zip(part, found, strict=True)

    @property
    def skipped(self) -> tuple[str, ...]:
        """What reads removed channels and cannot make up for them, and why; and shifts that nothing takes."""
        homeless = [f"{c.weight}: no bias or batch norm takes its shift" for c in self.consumers if c.home is None]
        return (*self._found[1], *homeless)


@runtime_checkable
class Recovery(Protocol):
    """A way to recover. A class that names this one as its base has everything but a name and ``recover``.

    Attributes:
        name: how it is called in messages.
        anew: all weights are drawn anew by `finish`: nothing is there to recover, and layers on the only path may go.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def anew(self) -> bool:  # noqa: D102
        return False

    def recover(self, context: RecoveryContext) -> Recovered:
        """Returns new values at full size, before anything is sliced; called without gradients."""
        ...

    def finish(self, pruned: nn.Module, seed: int) -> tuple[str, ...]:
        """Changes the emitted module in place, once it is verified; returns what was left alone, and why."""
        return ()


_RECOVERIES: dict[str, Callable[[], Recovery]] = {}


def register_recovery(name: str, factory: Callable[[], Recovery]) -> None:
    """Makes a recovery available as ``recover=name``.

    Raises:
        RecoveryError: the name is taken, or no name.
    """
    if not isinstance(name, str) or not name or name == "auto":
        raise RecoveryError(f"a recovery is registered under a name, got {name!r}")
    _fill()
    if name in _RECOVERIES:
        raise RecoveryError(f"a recovery named {name!r} is registered already")
    _RECOVERIES[name] = factory


@functools.cache
def _fill() -> None:
    """Registers the recoveries that come with fxprune, the first time that anybody asks."""
    importlib.import_module("fxprune.recovery.builtin")


def recovery_of(method: str | Recovery | None) -> Recovery | None:
    """Returns a recovery by name, the recovery itself, or None for none.

    Raises:
        RecoveryError: there is no recovery of that name, or the object is none; lists the names there are.
    """
    _fill()
    if method is None:
        return None
    if isinstance(method, str):
        if method not in _RECOVERIES:
            raise RecoveryError(f"recover must be one of {', '.join(_RECOVERIES)} or None, got {method!r}")
        return _RECOVERIES[method]()
    lacks = [part for part in ("name", "anew", "recover", "finish") if not hasattr(method, part)]
    if inspect.isclass(method) or lacks:
        wanted = ".name, .anew, .recover(context) and .finish(pruned, seed), which fxprune.Recovery has as a base class"
        raise RecoveryError(f"recover must be a name, None or an object with {wanted}, got {method!r:.80}")
    return method


def check_recovery(ridge: Any, memory_limit: Any) -> None:
    """Makes sure that the numbers that recoveries are given can be used.

    Raises:
        ValueError: a ridge or limit that is not positive.
    """
    if not isinstance(ridge, Real) or not float(ridge) > 0:
        raise ValueError(f"ridge must be a positive share of the mean variance, such as 1e-2, got {ridge!r}")
    if isinstance(memory_limit, bool) or not isinstance(memory_limit, int) or memory_limit <= 0:
        raise ValueError(f"memory_limit must be a positive number of bytes, got {memory_limit!r}")


@torch.no_grad()
def recovered(method: str | Recovery | None, context: RecoveryContext) -> Recovered:
    """Returns what a recovery changes; nothing if there is none, or nothing goes.

    Raises:
        RecoveryError: there is no such recovery, or it returned something else than `Recovered`, or a tensor of another
            shape than the one that it replaces; names it.
    """
    recovery = recovery_of(method)
    if recovery is None or not context.selection.removed.any():
        return Recovered()
    result = recovery.recover(context)
    if not isinstance(result, Recovered):
        raise RecoveryError(f"recovery {recovery.name!r}: expected fxprune.Recovered, got {type(result).__name__}")
    captured = context.selection.coupling.captured
    shapes = {str(n.target): captured.info[n].shape for n in captured.module.graph.nodes if n.op == "get_attr"}
    for name, tensor in result.tensors.items():
        if name not in shapes:
            raise RecoveryError(f"recovery {recovery.name!r}: the graph has no tensor {name!r} to replace")
        if shapes[name] != tuple(tensor.shape):
            expected = f"a replacement of shape {list(shapes[name])}, got {list(tensor.shape)}"
            raise RecoveryError(f"recovery {recovery.name!r}: {name}: expected {expected}")
    return result

"""The cost table: milliseconds of each distinct layer shape at sampled widths, interpolated in between.

Measured coarse to fine until the time is up, so that a model of many shapes gets a coarser table and not a late one.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, TypeAlias

import numpy as np
from tqdm import tqdm

from fxprune.budget.solver import Floats
from fxprune.latency.operation import Operation
from fxprune.latency.store import Store

Widths: TypeAlias = tuple[int, ...]

#: Returns the milliseconds of an operation at given widths, or None if it cannot run alone.
Measure: TypeAlias = Callable[[Operation, Widths], float | None]

#: Returns what kept counts come in multiples of, for a width.
Multiple: TypeAlias = Callable[[int], int]

#: Shares of a width that are measured, coarse to fine; 0 stands for the smallest there is.
LEVELS = ((0.0, 1.0), (0.5,), (0.25,), (0.75,))

#: An operation with more widths than this is measured along its diagonal, all of them shrinking alike.
MOST_WIDTHS = 2


def _any(width: int) -> int:
    return 1


@dataclass(slots=True)
class Curve:
    """The milliseconds of one operation over a grid; they never fall where a width grows.

    Attributes:
        operation: what was measured.
        multiple: what kept counts come in multiples of, for a width.
        points: ascending coordinates, one tuple for each dimension of the grid.
        values: milliseconds at the grid, made monotone; None until something is measured.
    """

    operation: Operation
    multiple: Multiple = _any
    points: tuple[tuple[float, ...], ...] = ()
    values: Floats | None = None

    @property
    def diagonal(self) -> bool:
        """Whether its one coordinate is the share of the work, all widths shrinking alike."""
        return not self.operation.contracts or len(self.operation.widths) > MOST_WIDTHS

    def grid(self, shares: Iterable[float]) -> tuple[tuple[tuple[float, ...], ...], dict[tuple[int, ...], Widths]]:
        """Returns the points for some shares of the widths, and the widths at each place of their grid."""
        sampled = [tuple(_sampled(n, share, self.multiple(n)) for n in self.operation.widths) for share in shares]
        if self.diagonal:
            along = {self.operation.work(widths): widths for widths in sampled}
            points = tuple(sorted(along))
            return (points,), {(i,): along[p] for i, p in enumerate(points)}
        axes = [sorted(set(axis)) for axis in zip(*sampled, strict=True)]
        places = product(*(range(len(axis)) for axis in axes))
        at = {place: tuple(axis[i] for axis, i in zip(axes, place, strict=True)) for place in places}
        return tuple(tuple(map(float, axis)) for axis in axes), at

    def ms(self, widths: Sequence[int]) -> float:
        """Returns the milliseconds at given widths: piecewise linear, nothing where a width is 0."""
        if self.values is None or not all(widths):
            return 0.0
        at = (self.operation.work(widths),) if self.diagonal else widths
        values: Any = self.values
        for points, x in zip(self.points, at, strict=True):
            values = sum(weight * values[i] for i, weight in _between(points, x))
        return float(values)


def _sampled(full: int, share: float, quantum: int) -> int:
    """Returns a width near a share of the full one, with no more powers of two than the kept counts are sure to have."""
    if share >= 1 or full <= quantum:
        return full
    times = max(1, round(share * full / quantum))
    return min(full, quantum * (times - 1 + times % 2))


def _between(points: Sequence[float], x: float) -> list[tuple[int, float]]:
    """Returns the neighbours of a coordinate and their weights."""
    right = bisect_right(points, x)
    if right == 0 or right == len(points):
        return [(min(right, len(points) - 1), 1.0)]
    share = (x - points[right - 1]) / (points[right] - points[right - 1])
    return [(right - 1, 1 - share), (right, share)]


@dataclass(slots=True)
class Table:
    """Curves by operation.

    Attributes:
        measure: gives the milliseconds of an operation at given widths.
        store: where what was measured is kept.
        multiple: what kept counts come in multiples of (``round_to``), for a width.
        seconds: after which nothing finer is measured; the ends of every curve are in any case.
        clock: tells the seconds.
        progress: show a bar on a terminal.
    """

    measure: Measure
    store: Store = field(default_factory=Store)
    multiple: Multiple = _any
    seconds: float = 60.0
    clock: Callable[[], float] = time.monotonic
    progress: bool = False
    curves: dict[Operation, Curve] = field(default_factory=dict)
    known: dict[tuple[Operation, tuple[int, ...]], float] = field(default_factory=dict)

    def fill(self, operations: Iterable[Operation]) -> None:
        """Measures operations, coarse to fine, until the time is up."""
        new = [Curve(op, self.multiple) for op in dict.fromkeys(operations) if op not in self.curves]
        if not new:
            return
        start = self.clock()
        shares: list[float] = []
        self.known.clear()
        hidden = None if self.progress else True  # None: unless there is a terminal
        with tqdm(total=len(new) * len(LEVELS), desc="fxprune latency", leave=False, disable=hidden) as bar:
            for level in LEVELS:
                shares += level
                for curve in new:
                    if curve.values is not None and self.clock() - start > self.seconds:
                        break
                    self._refine(curve, shares)
                    bar.update()
        self.curves.update({curve.operation: curve for curve in new})
        self.store.save()

    def _refine(self, curve: Curve, shares: Sequence[float]) -> None:
        points, places = curve.grid(shares)
        values = np.zeros([len(axis) for axis in points])
        for place, widths in places.items():
            values[place] = self._measured(curve.operation, widths)
        for dim in range(values.ndim):
            values = np.maximum.accumulate(values, axis=dim)
        curve.points, curve.values = points, values

    def _measured(self, operation: Operation, widths: tuple[int, ...]) -> float:
        key = f"{operation.key} at {widths}"
        known = self.store.values
        if key not in known:
            if (found := self.measure(operation, widths)) is None:
                return 0.0
            known[key] = found
        return known[key]

    def ms(self, operation: Operation, widths: tuple[int, ...]) -> float:
        """Returns the milliseconds of an operation that `fill` was given, at any widths."""
        key = (operation, widths)
        if key not in self.known:
            self.known[key] = self.curves[operation].ms(widths)
        return self.known[key]

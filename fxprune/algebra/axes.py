"""The algebra of axes: what one dimension of one tensor is made of, and what reshaping does to it.

An axis is a product of factors, outer to inner. A factor is *fixed* (its coordinates can never go), *free* (its
coordinates carry nothing that depends on a parameter, so whoever reads them may take fewer), or *labelled*: row i of
its label array says which channels coordinate i needs. The empty product is an axis of size one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fxprune.algebra.channels import Channels, Ids, Mask

#: The largest product of factors that is ever written out coordinate by coordinate.
EXPLICIT_LIMIT = 1 << 24


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """``size`` coordinates with a label each (``labels`` is ``[size, k]``), or none: fixed, or free."""

    size: int
    labels: Ids | None = None
    free: bool = False

    @property
    def fixed(self) -> bool:
        """Whether no coordinate can ever be removed."""
        return self.labels is None and not self.free


Axis = tuple[Factor, ...]
Axes = tuple[Axis, ...]


def fixed(size: int) -> Axis:
    """Returns an axis whose coordinates all stay."""
    return (Factor(size),) if size != 1 else ()


def free(size: int) -> Axis:
    """Returns an axis of which every reader may take a part of its own."""
    return (Factor(size, free=True),) if size != 1 else ()


def labelled(labels: Ids) -> Axis:
    """Returns an axis with one row of channel ids for each coordinate (``[size]`` or ``[size, k]``)."""
    rows = labels.reshape(len(labels), -1)
    return (Factor(len(rows), rows),)


def in_parts(axis: Axis) -> list[Axis]:
    """Returns an axis in parts: each labelled factor, and what lies before, between and behind these."""
    runs = itertools.groupby(axis, key=lambda factor: id(factor) if factor.labels is not None else None)
    return [tuple(run) for _, run in runs]


def size_of(axis: Axis) -> int:
    """Returns the number of coordinates."""
    return math.prod(factor.size for factor in axis)


def is_labelled(axis: Axis) -> bool:
    """Returns whether any coordinate may carry a channel."""
    return any(factor.labels is not None for factor in axis)


def is_free(axis: Axis) -> bool:
    """Returns whether the axis is free throughout (an axis of size one is not)."""
    return bool(axis) and all(factor.free for factor in axis)


def labels_of(axis: Axis) -> Iterable[Ids]:
    """Yields the label array ``[size, k]`` of each labelled factor."""
    return (factor.labels for factor in axis if factor.labels is not None)


def joined(axes: Iterable[Axis]) -> Axis:
    """Returns one axis with the factors of several: to freeze or to mark it is to do so with each."""
    return tuple(factor for axis in axes for factor in axis)


def explicit(axis: Axis) -> Ids | None:
    """Returns the label of every coordinate, ``[size, k]``, or None where that would be too large.

    Fixed factors give zeros. Traces (3 labelled) x (2 labelled): rows (a0, b0), (a0, b1), (a1, b0), ...
    """
    total = size_of(axis)
    if total > EXPLICIT_LIMIT:
        return None
    columns = [np.zeros((total, 0), np.int64)]
    outer = 1
    for factor in axis:
        inner = total // max(outer * factor.size, 1)
        if factor.labels is not None:
            columns.append(np.tile(np.repeat(factor.labels, inner, axis=0), (outer, 1)))
        outer *= factor.size
    return np.concatenate(columns, axis=1)


def freeze(channels: Channels, axis: Axis, reason: str) -> None:
    """Makes every coordinate of the axis permanent."""
    for labels in labels_of(axis):
        channels.freeze(labels, reason)


def mark(channels: Channels, axis: Axis, kind: str) -> None:
    """Names the kind of the axis' channels (`head`, `head_dim`)."""
    for labels in labels_of(axis):
        channels.mark(labels, kind)


def relate(channels: Channels, a: Axis, b: Axis, reason: str) -> None:
    """Makes coordinate i of one axis go exactly when coordinate i of the other goes.

    Factors are matched where their boundaries meet; in between they are compared coordinate by coordinate.
    """
    left, right = list(reversed(a)), list(reversed(b))
    while left and right:
        run_a, run_b = [left.pop()], [right.pop()]
        while (have := size_of(tuple(run_a))) != (want := size_of(tuple(run_b))):
            source, run = (left, run_a) if have < want else (right, run_b)
            if not source:
                break
            run.append(source.pop())
        _relate_runs(channels, tuple(run_a), tuple(run_b), reason)
    freeze(channels, (*left, *right), reason)


def _relate_runs(channels: Channels, a: Axis, b: Axis, reason: str) -> None:
    if is_free(a) or is_free(b) or not (is_labelled(a) or is_labelled(b)):
        return
    rows_a, rows_b = explicit(a), explicit(b)
    if rows_a is None or rows_b is None or len(rows_a) != len(rows_b):
        freeze(channels, (*a, *b), reason)
        return
    channels.relate(rows_a, rows_b, reason)


def broadcast(channels: Channels, axes: Sequence[Axis], reason: str) -> Axis:
    """Returns the axis that elementwise work on these axes (aligned, sizes equal or one) leaves behind."""
    full = [axis for axis in axes if size_of(axis) != 1]
    if not full:
        best = max(axes, key=is_labelled, default=())
        for axis in axes:
            if axis is not best and is_labelled(best):
                relate(channels, best, axis, reason)
        return best
    for axis in axes:
        if size_of(axis) == 1:
            freeze(channels, axis, f"a size of one that is broadcast ({reason})")
    marked = [axis for axis in full if is_labelled(axis)]
    if not marked:
        held = [axis for axis in full if not is_free(axis)]
        return held[0] if len(held) == 1 else fixed(size_of(full[0])) if held else full[0]
    best = max(marked, key=len)
    for axis in full:
        if axis is not best:
            relate(channels, best, axis, reason)
    return best


def reshape(channels: Channels, axes: Sequence[Axis], sizes: Sequence[int], reason: str) -> Axes:
    """Returns the axes after a row-major reshape to ``sizes`` (same number of elements).

    Axes merge by joining their factors and split at factor boundaries; a split inside a factor is `split`.
    """
    queue = [*reversed(joined(axes))]
    if 0 in sizes or any(factor.size == 0 for factor in queue):
        freeze(channels, joined(axes), reason)
        return tuple(fixed(size) for size in sizes)
    result = []
    for size in sizes:
        need, taken = size, []
        while need > 1:
            factor = queue.pop()
            if need % factor.size == 0:
                need //= factor.size
                if factor.size > 1 or factor.labels is not None:
                    taken.append(factor)
            elif factor.size % need == 0:
                outer, inner = split(channels, factor, need, reason)
                taken.append(outer)
                queue.append(inner)
                need = 1
            else:
                queue.append(_merge(channels, factor, queue.pop(), reason))
        result.append(tuple(taken))
    freeze(channels, (*queue,), f"a size of one that is dropped ({reason})")  # what is left has size one
    return tuple(result)


def _merge(channels: Channels, outer: Factor, inner: Factor, reason: str) -> Factor:
    """Returns one factor for two, where a reshape cuts across their boundary."""
    size = outer.size * inner.size
    if outer.free and inner.free:
        return Factor(size, free=True)
    rows = explicit((outer, inner)) if is_labelled((outer, inner)) else None
    if rows is None:
        freeze(channels, (outer, inner), reason)
    return Factor(size, rows)


def split(channels: Channels, factor: Factor, outer_size: int, reason: str) -> tuple[Factor, Factor]:
    """Splits one factor into (outer, inner).

    A label column that is constant along the inner part belongs to the outer, one that is constant along the outer
    part to the inner. Any other column is refined: id (i, j) now stands for (alpha_i, beta_j), which leaves exactly
    "remove row i" and "remove position j of every row", and nothing else.
    """
    inner_size = factor.size // outer_size
    if factor.labels is None:
        return Factor(outer_size, free=factor.free), Factor(inner_size, free=factor.free)
    rows = channels.resolve(factor.labels)
    cube = rows.reshape(outer_size, inner_size, rows.shape[1])
    to_outer: list[Ids] = []
    to_inner: list[Ids] = []
    for k in range(rows.shape[1]):
        column = cube[:, :, k]
        if (column == column[:, :1]).all():
            to_outer.append(column[:, 0])
        elif (column == column[:1]).all():
            to_inner.append(column[0])
        else:
            alpha, beta = channels.fresh(outer_size), channels.fresh(inner_size)
            pairs = np.stack([np.repeat(alpha, inner_size), np.tile(beta, outer_size)], axis=1)
            given = factor.labels if rows.shape[1] == 1 else column.reshape(-1, 1)  # unresolved, it knows its reason
            channels.relate(given, pairs, reason)
            to_outer.append(alpha)
            to_inner.append(beta)
    return _factor(outer_size, to_outer), _factor(inner_size, to_inner)


def _factor(size: int, columns: list[Ids]) -> Factor:
    return Factor(size, np.stack(columns, axis=1)) if columns else Factor(size)


def take(channels: Channels, axis: Axis, start: int, stop: int, step: int, reason: str) -> Axis:
    """Returns the axis of ``x[start:stop:step]``; bounds are within the size."""
    count = len(range(start, stop, step))
    if not is_labelled(axis):
        return free(count) if is_free(axis) else fixed(count)
    head, tail = axis[0], axis[1:]
    inner = size_of(tail)
    if step == 1 and start % inner == 0 and stop % inner == 0:
        part = slice(start // inner, stop // inner)
        labels = None if head.labels is None else head.labels[part]
        return (Factor(part.stop - part.start, labels, head.free), *tail)
    rows = explicit(axis)
    if rows is None:
        freeze(channels, axis, reason)
        return fixed(count)
    return labelled(rows[start:stop:step])


def concat(channels: Channels, axes: Sequence[Axis], reason: str) -> Axis:
    """Returns the axis of a concatenation; free parts have been given ids before, by whoever needs them."""
    total = sum(size_of(axis) for axis in axes)
    filled = [axis for axis in axes if size_of(axis)]
    if len(filled) == 1:
        return filled[0]
    if not any(is_labelled(axis) for axis in filled):
        return free(total) if filled and all(is_free(axis) for axis in filled) else fixed(total)
    parts = [explicit(axis) for axis in filled]
    if total > EXPLICIT_LIMIT or any(part is None for part in parts):
        freeze(channels, joined(filled), reason)
        return fixed(total)
    width = max(part.shape[1] for part in parts if part is not None)
    return labelled(np.concatenate([np.pad(p, ((0, 0), (0, width - p.shape[1]))) for p in parts if p is not None]))


def keep_mask(labels: Ids, removed: Mask) -> Mask:
    """Returns which coordinates stay, ``[size]``, when channels are gone.

    Args:
        labels: of each coordinate, ``[size, k]``, resolved.
        removed: a flag for each channel id, ``[channels]``.
    """
    return np.asarray(~removed[labels].any(axis=1), bool)

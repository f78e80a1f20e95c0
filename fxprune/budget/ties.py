"""Ties: channels that must go in step, bundled so that whatever number of bundles goes, all ties hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fxprune.algebra.channels import Ids, Mask
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.units import Group

Equal = tuple[Ids, Ids]


@dataclass(frozen=True, slots=True, eq=False)
class Ties:
    """What must go in step, and what must stay.

    Attributes:
        held: flags the channels that stay, ``[channels]``.
        equal: (channels, weights): of those that go, the weights must add up to 0.
        multiples: (channels, weights, number): of those that go, the weights must add up to a multiple of a number.
    """

    held: Mask
    equal: tuple[Equal, ...] = ()
    multiples: tuple[tuple[Ids, Ids, int], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Bundles:
    """Channels that go in step.

    Attributes:
        groups: the names of those that they are of.
        rows: each goes as a whole, ``[bundles, channels]``, best first.
        each: how many of each cell a bundle has: of channels that all ties treat alike.
    """

    groups: tuple[str, ...]
    rows: Ids
    each: tuple[int, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class TieCost:
    """What going in step has cost some groups.

    Attributes:
        groups: their names.
        gone: how many of their units went.
        share: of the score of all their units, what would have stayed had each group lost as many of its own choice.
    """

    groups: tuple[str, ...]
    gone: int
    share: float


def tie_costs(
    coupling: Coupling, ties: Ties, values: npt.NDArray[np.float64], groups: Sequence[Group], removed: Mask
) -> list[TieCost]:
    """Returns what each set of ties has cost, the dearest first.

    Args:
        coupling: of the captured graph.
        ties: what had to go in step.
        values: the score of each channel id, ``[channels]``.
        groups: those that could lose units.
        removed: flags what went, ``[channels]``.
    """
    units = {group.name: coupling.units[group.units] for group in groups}
    found = []
    for bundles in bundles_of(coupling, ties, values, groups)[0]:
        lost, whole, gone = 0.0, 0.0, 0
        for ids in (units[name] for name in bundles.groups):
            went = values[ids][removed[ids]]
            lost += float(went.sum() - np.sort(values[ids])[: len(went)].sum())
            whole += float(values[ids].sum())
            gone += len(went)
        found.append(TieCost(bundles.groups, gone, lost / whole if whole else 0.0))
    return sorted(found, key=lambda cost: (-cost.share, cost.groups))


def bundles_of(
    coupling: Coupling, ties: Ties, values: npt.NDArray[np.float64], groups: Sequence[Group]
) -> tuple[list[Bundles], Mask]:
    """Returns the tied channels in bundles, and flags, ``[channels]``, of all that no group may lose by itself.

    Channels of one group that all ties treat alike are a cell, ranked by their values; the k-th bundle has the k-th best of
    each cell, or as many of each as the ties want. What finds no partner stays.

    Args:
        coupling: of the captured graph.
        ties: what must go in step.
        values: the score of each channel id, ``[channels]``.
        groups: those that may lose units.
    """
    bound = ties.held.copy()
    group_of = np.full(len(coupling.channels), -1, np.int64)
    for i, group in enumerate(groups):
        group_of[coupling.units[group.units]] = i
    numbers = [0] * len(ties.equal) + [number for _, _, number in ties.multiples]
    rows = [*ties.equal, *((ids, weights) for ids, weights, _ in ties.multiples)]
    for ids, _ in rows:
        bound[ids] = True
    rows = [(ids[group_of[ids] >= 0], weights[group_of[ids] >= 0]) for ids, weights in rows]
    found = []
    for cells, matrix, which in _components(rows, group_of):
        each = _ratio(matrix, np.array([numbers[i] for i in which]), np.array([len(cell) for cell in cells]))
        if each is None or any(ties.held[cell].any() for cell in cells):
            continue
        ranked = [cell[np.argsort(-values[cell], kind="stable")] for cell in cells]
        count = min(len(cell) // n for cell, n in zip(ranked, each, strict=True))
        pairs = zip(ranked, each, strict=True)  # what finds no partner is the best, and stays
        parts = [cell[len(cell) - count * n :].reshape(count, n) for cell, n in pairs]
        names = dict.fromkeys(groups[int(group_of[cell[0]])].name for cell in cells)
        found.append(Bundles(tuple(names), np.concatenate(parts, axis=1), tuple(each)))
    return found, bound


def _components(equal: Sequence[Equal], group_of: Ids) -> Iterator[tuple[list[Ids], Ids, list[int]]]:
    """Yields cells that ties connect, the weights of the ties on them, ``[ties, cells]``, and which ties they are."""
    import networkx as nx

    marks: dict[int, list[tuple[int, int]]] = {}
    for i, (ids, weights) in enumerate(equal):
        for channel, weight in zip(ids.tolist(), weights.tolist(), strict=True):
            marks.setdefault(channel, []).append((i, weight))
    alike: dict[tuple[int, tuple[tuple[int, int], ...]], list[int]] = {}
    for channel, mark in marks.items():
        alike.setdefault((int(group_of[channel]), tuple(mark)), []).append(channel)
    cells = [(np.array(sorted(channels), np.int64), mark) for (_, mark), channels in alike.items()]
    graph: nx.Graph[tuple[str, int]] = nx.Graph()
    for column, (_, ties_here) in enumerate(cells):
        graph.add_edges_from((("cell", column), ("tie", i)) for i, _ in ties_here)
    for part in nx.connected_components(graph):
        columns = sorted((i for what, i in part if what == "cell"), key=lambda i: int(cells[i][0][0]))
        rows = sorted(i for what, i in part if what == "tie")
        matrix = np.zeros((len(rows), len(columns)), np.int64)
        for at, column in enumerate(columns):
            for i, weight in cells[column][1]:
                matrix[rows.index(i), at] = weight
        yield [cells[column][0] for column in columns], matrix, rows


def _ratio(matrix: Ids, numbers: Ids, sizes: Ids) -> list[int] | None:
    """Returns how many of each cell go together, the fewest with which all ties hold; None if there is no such number.

    Args:
        matrix: the weights of the ties on the cells, ``[ties, cells]``.
        numbers: of which each tie wants a multiple, ``[ties]``; 0 for nothing but 0.
        sizes: of the cells, ``[cells]``.
    """
    counts = _step(np.unique(matrix[numbers == 0], axis=0), sizes)
    if counts is None:
        return None
    sums = (matrix[numbers > 0] @ np.array(counts)).tolist()
    times = math.lcm(*(n // math.gcd(n, total) for n, total in zip(numbers[numbers > 0].tolist(), sums, strict=True)))
    return [count * times for count in counts]


def _step(matrix: Ids, sizes: Ids) -> list[int] | None:
    """Returns the smallest whole numbers above 0 that the rows of a matrix, ``[ties, cells]``, take to 0; None if there are none.

    Where there are several ways, that in which all cells lose the same share.
    """
    import sympy

    if not len(matrix):
        return [1] * len(sizes) if len(sizes) == 1 else [int(size) // math.gcd(*sizes.tolist()) for size in sizes]
    space = sympy.Matrix(matrix.tolist()).nullspace()
    found = list(space[0]) if len(space) == 1 else sizes.tolist() if not (matrix @ sizes).any() else None
    if found is None or any(value <= 0 for value in found):
        return None
    whole = sympy.ilcm(1, *(sympy.Rational(value).q for value in found))
    counts = [int(value * whole) for value in found]
    return [count // math.gcd(*counts) for count in counts]

"""Pools: the channels of each group in the order in which they may come back, and the steps in which they do."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fxprune.algebra.channels import Ids, Mask
from fxprune.budget.ties import Bundles, Ties, bundles_of
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.units import Group


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """The channels of one group, or tied ones of several, best first, of which ``least`` stay whatever happens.

    They are kept in multiples of ``quantum``, or all of them; tied ones in whole bundles of ``bundle``.
    """

    groups: tuple[str, ...]
    order: Ids
    least: int
    quantum: int
    bundle: int = 1

    def rounded(self, count: int) -> int:
        """Returns how many stay if at least ``count`` are to."""
        return min(max(self.least, math.ceil(count / self.quantum) * self.quantum), len(self.order))

    def gone(self, removed: Mask) -> Ids:
        """Returns those that are removed, ``[gone]``, best first, for flags ``[channels]``."""
        return self.order[removed[self.order]]

    def lacking(self, removed: Mask) -> Ids:
        """Returns those that must come back, for flags ``[channels]``, so that multiples are whole, and bundles."""
        if self.bundle > 1:
            bundles = self.order.reshape(-1, self.bundle)
            whole = removed[bundles].all(axis=1)
            removed = removed.copy()
            removed[bundles[~whole]] = False
        gone = self.gone(removed)
        kept = len(self.order) - len(gone)
        back = gone[: self.rounded(kept) - kept]
        torn = self.order[~removed[self.order]]
        return np.concatenate([back, torn])

    def steps(self, removed: Mask) -> list[Ids]:
        """Returns those that are removed, for flags ``[channels]``, in the steps in which they may come back."""
        gone = self.gone(removed)
        return [gone[i : i + self.quantum] for i in range(0, len(gone), self.quantum)]


def _quanta(coupling: Coupling, groups: Sequence[Group], round_to: int) -> dict[str, int]:
    """Returns, for each group, how many units at a time keep every layer that makes it at a multiple of ``round_to``.

    Heads of 64 may go one by one where the layer is to stay at multiples of 8, if the 64 go by eights: of groups that
    share coordinates, the one with most units is rounded first, and the others count on what it is sure to keep.
    """
    sure: dict[str, int] = {}  # every kept count of the group is a multiple of this
    quanta: dict[str, int] = {}
    on_axis: dict[int, list[tuple[Group, int]]] = {}
    for group in groups:
        for index, count in group.axes:
            on_axis.setdefault(index, []).append((group, count))
    for group in sorted(groups, key=lambda g: -len(g.units)) if round_to > 1 else ():
        quantum = 1
        for index, count in group.axes:
            axis = coupling.axes[index]
            if axis.layer in group.producers and not axis.reads:
                for other, _ in on_axis[index]:
                    if other is not group and _overlap(coupling, axis.labels, group, other):
                        whole, rest = divmod(count, len(other.units))
                        count = whole * sure.get(other.name, 1) if rest == 0 else 1
                quantum = math.lcm(quantum, round_to // math.gcd(round_to, count))
        quanta[group.name] = quantum
        sure[group.name] = math.gcd(quantum, len(group.units))
    return quanta


def _overlap(coupling: Coupling, labels: Ids, a: Group, b: Group) -> bool:
    """Returns whether a coordinate belongs to units of both groups."""
    hit = [np.isin(labels, coupling.units[group.units]).any(axis=1) for group in (a, b)]
    return bool((hit[0] & hit[1]).any())


def pools_of(
    coupling: Coupling,
    values: npt.NDArray[np.float64],
    groups: Sequence[Group],
    *,
    round_to: int,
    min_keep: int,
    may_vanish: Set[str],
    ties: Ties | None = None,
) -> list[Pool]:
    """Returns the pool of each group, without what is tied, and those of tied channels.

    Args:
        coupling: of the captured graph.
        values: the score of each channel id, ``[channels]``.
        groups: those that may lose units.
        round_to: kept channels of a layer come in multiples of this.
        min_keep: units that every group keeps at least.
        may_vanish: names of groups that may lose all.
        ties: what goes in step.
    """
    quanta = _quanta(coupling, groups, round_to)
    bundles, bound = ([], None) if ties is None else bundles_of(coupling, ties, values, groups)
    pools = []
    for group in groups:
        ids = coupling.units[group.units]
        ids = ids if bound is None else ids[~bound[ids]]
        quantum = quanta.get(group.name, 1)
        least = math.ceil(max(min_keep, 1) / quantum) * quantum
        order = ids[np.argsort(-values[ids], kind="stable")]
        pools.append(Pool((group.name,), order, 0 if group.name in may_vanish else min(least, len(ids)), quantum))
    return [
        *pools,
        *(_tied(bundle, round_to, 0 if may_vanish >= {*bundle.groups} else max(min_keep, 1)) for bundle in bundles),
    ]


def _tied(bundles: Bundles, round_to: int, min_keep: int) -> Pool:
    """Returns the pool of bundles; each cell keeps multiples of ``round_to``, and ``min_keep`` bundles stay."""
    size = bundles.rows.shape[1]
    at_once = math.lcm(*(round_to // math.gcd(round_to, each) for each in bundles.each))
    least = math.ceil(min_keep / at_once) * at_once * size
    return Pool(bundles.groups, bundles.rows.reshape(-1), min(least, bundles.rows.size), at_once * size, size)

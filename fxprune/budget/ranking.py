"""Pools: the channels of each group in the order in which they may come back, and the steps in which they do."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fxprune.algebra.channels import Ids, Mask
from fxprune.budget.constraints import Constraints
from fxprune.budget.ties import Bundles, bundles_of
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.units import Group


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """The channels of one group, or tied ones of several, best first, of which ``least`` stay whatever happens.

    They are kept in multiples of ``quantum``, or all of them, and if that is ``eased`` below it in powers of two; tied ones in whole
    bundles of ``bundle``.
    """

    groups: tuple[str, ...]
    order: Ids
    least: int
    quantum: int
    bundle: int = 1
    eased: bool = False

    def rounded(self, count: int) -> int:
        """Returns how many stay if at least ``count`` are to."""
        if count <= self.least:
            return self.least
        whole = math.ceil(count / self.quantum) * self.quantum
        if self.eased and 0 < count < self.quantum:
            whole = min(whole, self.bundle << (math.ceil(count / self.bundle) - 1).bit_length())
        return min(whole, len(self.order))

    def fewest(self, count: int) -> int:
        """Returns how many stay at least if ``count`` must: eased multiples do not ask for more."""
        return min(count, len(self.order)) if self.eased else self.rounded(count)

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
        gone, kept = self.gone(removed), len(self.order)
        kept -= len(gone)
        ends = [0]
        while ends[-1] < len(gone):
            ends.append(self.rounded(kept + ends[-1] + 1) - kept)
        return [gone[start:end] for start, end in itertools.pairwise(ends)]


def _quanta(coupling: Coupling, groups: Sequence[Group], constraints: Constraints) -> dict[str, int]:
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
    for group in sorted(groups, key=lambda g: -len(g.units)) if constraints.round_to > 1 else ():
        quantum = 1
        for index, count in group.axes:
            axis = coupling.axes[index]
            if axis.layer in group.producers and not axis.reads:
                for other, _ in on_axis[index]:
                    if other is not group and _overlap(coupling, axis.labels, group, other):
                        whole, rest = divmod(count, len(other.units))
                        count = whole * sure.get(other.name, 1) if rest == 0 else 1
                quantum = math.lcm(quantum, constraints.multiple(count, len(group.units)))
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
    constraints: Constraints,
    may_vanish: Set[str],
) -> list[Pool]:
    """Returns the pool of each group, without what is tied, and those of tied channels.

    Args:
        coupling: of the captured graph.
        values: the score of each channel id, ``[channels]``.
        groups: those that may lose units.
        constraints: of what stays, multiples, the least and what goes in step.
        may_vanish: names of groups that may lose all.
    """
    quanta, ties = _quanta(coupling, groups, constraints), constraints.ties
    bundles, bound = ([], None) if ties is None else bundles_of(coupling, ties, values, groups)
    pools = []
    for group in groups:
        ids = coupling.units[group.units]
        ids = ids if bound is None else ids[~bound[ids]]
        order = ids[np.argsort(-values[ids], kind="stable")]
        pools.append(Pool((group.name,), order, 0, quanta.get(group.name, 1), eased=constraints.eased))
    pools += [_tied(bundle, constraints) for bundle in bundles]
    few = max(constraints.min_keep, 1)
    return [
        pool if may_vanish >= {*pool.groups} else replace(pool, least=pool.fewest(few * pool.bundle)) for pool in pools
    ]


def _tied(bundles: Bundles, constraints: Constraints) -> Pool:
    """Returns the pool of bundles; each cell keeps multiples of ``round_to``."""
    count, size = bundles.rows.shape
    at_once = math.lcm(*(constraints.multiple(each, count) for each in bundles.each))
    return Pool(bundles.groups, bundles.rows.reshape(-1), 0, at_once * size, size, constraints.eased)

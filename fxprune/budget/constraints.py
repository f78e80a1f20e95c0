"""Constraints: what must stay whatever the scores say, and the groups that are left to lose units."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from fxprune._base.errors import IgnoredPatternWarning
from fxprune._base.names import layer_of
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.units import Group


@dataclass(frozen=True, slots=True)
class Constraints:
    """What must stay whatever the scores say.

    Attributes:
        kinds: kinds of unit that may go.
        ignore: ``fnmatch`` patterns of layers or tensors whose channels all stay.
        round_to: kept channels of a group come in multiples of this.
        min_keep: units that every group keeps at least, blocks aside; with 0 a residual branch may vanish.
    """

    kinds: tuple[str, ...] = ("channel", "expert", "head", "head_dim", "kv_group")
    ignore: tuple[str, ...] = ()
    round_to: int = 1
    min_keep: int = 1


def matches(patterns: Iterable[str], names: Iterable[str]) -> set[str]:
    """Returns the patterns that match any of the names."""
    found = list(names)
    return {p for p in patterns if any(fnmatch.fnmatchcase(name, p) for name in found)}


def names_of(coupling: Coupling, group: Group) -> set[str]:
    """Returns what a pattern may call a group by: its name, and the layers and tensors that make it."""
    made = {a.tensor for index, _ in group.axes if (a := coupling.axes[index]).layer in group.producers}
    return {group.name, *group.producers} | (made if group.producers else set())


def free_groups(coupling: Coupling, constraints: Constraints) -> list[Group]:
    """Returns the groups that may lose units; warns of patterns that match nothing."""
    used: set[str] = set()
    free = []
    for group in coupling.groups:
        hit = matches(constraints.ignore, names_of(coupling, group))
        used |= hit
        if not hit and group.kind in constraints.kinds:
            free.append(group)
    every = {node.target for node in coupling.values if node.op == "get_attr"}
    used |= matches(set(constraints.ignore) - used, {str(n) for n in every} | {layer_of(str(n)) for n in every})
    for pattern in constraints.ignore:
        if pattern not in used:
            warnings.warn(f"ignore pattern {pattern!r} matches no layer", IgnoredPatternWarning, stacklevel=4)
    return free

"""Constraints: what must stay whatever the scores say, and the groups that are left to lose units."""

from __future__ import annotations

from dataclasses import dataclass

from fxprune.budget.patterns import holding, matches, names_of_layers, warn_unused
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.units import Group


@dataclass(frozen=True, slots=True)
class Constraints:
    """What must stay whatever the scores say.

    Attributes:
        kinds: kinds of unit that may go.
        ignore: ``fnmatch`` patterns of layers, modules that hold them, or tensors, whose channels all stay.
        round_to: kept channels of a group come in multiples of this.
        min_keep: units that every group keeps at least, blocks aside; with 0 a residual branch may vanish.
    """

    kinds: tuple[str, ...] = ("channel", "expert", "head", "head_dim", "kv_group")
    ignore: tuple[str, ...] = ()
    round_to: int = 1
    min_keep: int = 1


def free_groups(coupling: Coupling, constraints: Constraints) -> list[Group]:
    """Returns the groups that may lose units; warns of patterns that match nothing."""
    names = names_of_layers(coupling)
    held = {group.name: holding(coupling, group, constraints.ignore, names) for group in coupling.groups}
    used = set().union(*held.values())
    for pattern in constraints.ignore:
        if pattern not in used and not any(matches(spelled, pattern) for spelled in names.values()):
            warn_unused("ignore", pattern, coupling, names)
    return [group for group in coupling.groups if not held[group.name] and group.kind in constraints.kinds]

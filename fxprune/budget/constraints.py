"""Constraints: what must stay whatever the scores say, and the groups that are left to lose units."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fxprune.budget.patterns import holding, names_of_layers
from fxprune.budget.ties import Ties
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.units import Group

#: Multiples that a group has at least, where they may be eased.
ROOM = 8


@dataclass(frozen=True, slots=True)
class Constraints:
    """What must stay whatever the scores say.

    Attributes:
        kinds: kinds of unit that may go.
        ignore: ``fnmatch`` patterns of layers, modules that hold them, or tensors, whose channels all stay.
        round_to: kept channels of a group come in multiples of this.
        min_keep: units that every group keeps at least, blocks aside; with 0 a residual branch may vanish.
        ties: channels that go in step, or stay.
        eased: of ``round_to`` it is a half, a quarter and so on where a group has fewer than ``ROOM`` multiples of more; and below
            one multiple kept channels are powers of two.
    """

    kinds: tuple[str, ...] = ("channel", "expert", "head", "head_dim", "kv_group")
    ignore: tuple[str, ...] = ()
    round_to: int = 1
    min_keep: int = 1
    ties: Ties | None = None
    eased: bool = False

    def multiple(self, count: int, units: int = 1) -> int:
        """Returns how many units at a time keep ``count`` channels each at multiples of ``round_to``, in a group of so many."""
        found = self.round_to // math.gcd(self.round_to, count)
        while self.eased and found > 1 and units < ROOM * found:
            found //= 2
        return found


def free_groups(coupling: Coupling, constraints: Constraints) -> list[Group]:
    """Returns the groups that may lose units."""
    names = names_of_layers(coupling)
    groups = [group for group in coupling.groups if group.kind in constraints.kinds]
    return [group for group in groups if not holding(coupling, group, constraints.ignore, names)]

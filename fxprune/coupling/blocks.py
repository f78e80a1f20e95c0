"""Blocks: whole residual branches as units, found from the graph alone.

A branch goes when the groups within it that may vanish (`fxprune.coupling.branches`) do. In the algebra of axes that is one more
channel: every label of those groups gets it beside its own, ``(a)`` becomes ``(a, block)``, so that each coordinate goes
with its own channel or with the block. Scores, costs, twin and slicing then know blocks as they know heads.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from fxprune.algebra.channels import Ids
from fxprune.coupling.branches import collapses
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.units import form_groups


def has_blocks(coupling: Coupling) -> bool:
    """Returns whether any unit is a block."""
    return any(group.kind == "block" for group in coupling.groups)


def with_blocks(coupling: Coupling) -> Coupling:
    """Returns the coupling with a unit of kind ``"block"``, a group of its own, for every residual branch.

    Branches that only go together (layers that share weights) are one block. The given coupling is left as it is.
    """
    channels = copy.deepcopy(coupling.channels)
    if branches := list(_branches(coupling)):
        blocks = channels.fresh(len(branches), "block")
        channels.join(np.concatenate(branches), blocks.repeat([len(ids) for ids in branches]))
    axes = tuple(replace(axis, labels=channels.resolve(axis.labels)) for axis in coupling.axes)
    units, groups = form_groups(channels, axes)
    return replace(coupling, channels=channels, axes=axes, units=units, groups=groups)


def _branches(coupling: Coupling) -> Iterator[Ids]:
    """Yields for each residual branch the channels of the groups whose vanishing takes it, and nothing else, away."""
    by_frontier: dict[frozenset[object], list[Ids]] = {}
    members = {group.name: coupling.units[group.units] for group in coupling.groups}
    for name, collapse in collapses(coupling, coupling.groups).items():
        by_frontier.setdefault(frozenset(collapse.frontier), []).append(members[name])
    for frontier, parts in by_frontier.items():
        if not any(other < frontier for other in by_frontier):
            yield np.concatenate(parts)

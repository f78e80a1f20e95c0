"""Scope: which groups a criterion compares; the others stay."""

from __future__ import annotations

import numpy as np
import torch

from fxprune._base.errors import NothingToPruneError
from fxprune._base.names import fetch
from fxprune.algebra.axes import labels_of
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.unit_scores import STAYS
from fxprune.coupling.units import Group
from fxprune.ops.tracer import Contraction

SCOPES = ("all", "mlp")


def mlp_groups(coupling: Coupling) -> tuple[Group, ...]:
    """Returns the groups that are hidden units of an MLP, told by the graph alone.

    Such units are channels (no heads) that one linear layer makes, or two of a gated MLP, and that a single sum in the
    whole graph reads: another linear layer. A linear layer is a contraction with a matrix parameter.
    """
    readers: dict[int, set[Contraction]] = {}
    for contraction in coupling.contractions:
        for labels in labels_of(contraction.axis):
            for channel in np.unique(coupling.channels.resolve(labels)).tolist():
                readers.setdefault(channel, set()).add(contraction)
    linear = {str(c.weight.target) for c in coupling.contractions if c.weight is not None and _is_linear(coupling, c)}
    found = []
    for group in coupling.groups:
        makers = {coupling.axes[index].tensor for index, _ in group.axes if coupling.axes[index].makes}
        taken = set[Contraction]().union(*(readers.get(c, ()) for c in coupling.units[group.units].tolist()))
        one = len(taken) == 1 and all(_is_linear(coupling, reader) for reader in taken)
        if group.kind == "channel" and 1 <= len(makers) <= 2 and makers <= linear and one:
            found.append(group)
    return tuple(found)


def within(coupling: Coupling, scores: dict[str, torch.Tensor], scope: str) -> dict[str, torch.Tensor]:
    """Returns the scores, ``[units]`` each, with `STAYS` for all groups that are out of scope.

    Raises:
        NothingToPruneError: no group is in scope.
    """
    if scope == "all":
        return scores
    inside = {group.name for group in mlp_groups(coupling)}
    if not inside:
        raise NothingToPruneError(
            "scope='mlp' expects hidden units of an MLP: channels that one linear layer makes (or two, gated) and one "
            f"linear layer reads; none of the {len(coupling.groups)} groups of this model is such, use scope='all'"
        )
    return {name: score if name in inside else torch.full_like(score, STAYS) for name, score in scores.items()}


def _is_linear(coupling: Coupling, contraction: Contraction) -> bool:
    weight = contraction.weight
    return weight is not None and fetch(coupling.captured.module, str(weight.target)).dim() == 2

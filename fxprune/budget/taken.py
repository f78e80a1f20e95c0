"""Shares that take nothing of what they reach, and why."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from fxprune._base.errors import FxpruneWarning, outside
from fxprune.algebra.channels import Mask
from fxprune.budget.constraints import Constraints, free_groups
from fxprune.budget.patterns import names_of_layers, reaching
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.unit_scores import STAYS
from fxprune.coupling.units import Group
from fxprune.results.tables import few


def check_taken(
    coupling: Coupling,
    constraints: Constraints,
    scores: Mapping[str, Tensor],
    ratios: Mapping[str, float],
    removed: Mask,
) -> None:
    """Warns of each share above zero that takes nothing of all that it reaches, and says why.

    Args:
        coupling: what could go.
        constraints: what must stay.
        scores: by group, ``[units]``.
        ratios: shares by pattern.
        removed: flags of the channels that go, ``[channels]``.
    """
    names, own = names_of_layers(coupling), [pattern for pattern in ratios if pattern != "default"]
    reached: dict[str, list[Group]] = {}
    for group in free_groups(coupling, constraints):
        reached.setdefault(reaching(coupling, group, own, names) or "default", []).append(group)
    for pattern, share in ratios.items():
        mine = reached.get(pattern, [])
        if not share or not mine or any(removed[coupling.units[group.units]].any() for group in mine):
            continue
        why: dict[str, list[str]] = {}
        for group in mine:
            why.setdefault(_why_untaken(coupling, constraints, scores, share, group), []).append(
                f"{group.name} ({group.kind}s)"
            )
        text = "; ".join(f"{few(groups, 3)}: {reason}" for reason, groups in why.items())
        warnings.warn(
            f"ratios: {share:g} for {pattern!r} takes nothing of {text}", FxpruneWarning, stacklevel=outside()
        )


def _why_untaken(
    coupling: Coupling, constraints: Constraints, scores: Mapping[str, Tensor], share: float, group: Group
) -> str:
    if (torch.as_tensor(scores[group.name]) == STAYS).all():
        return "the criterion lets them stay"
    if constraints.ties is not None and constraints.ties.held[coupling.units[group.units]].all():
        return "the model's own class cannot say that there are fewer (form='graph' needs no class)"
    if share * len(group.units) < 1:
        return f"that share of {len(group.units)} is less than one"
    return "what must go with them, or must be left, stays"

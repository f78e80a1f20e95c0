"""SPvR (Hassan, Paik, Khare, UAI 2025, PMLR 286): groups of correlated units, ranked by what masking them does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fxprune._base.errors import ScorerError
from fxprune.algebra.channels import Ids
from fxprune.scoring.engine.columns import by_factor
from fxprune.scoring.engine.families import round_scores
from fxprune.scoring.engine.masking import masked_scores, spread
from fxprune.scoring.engine.reads import Input, inputs_read
from fxprune.scoring.loss import log_probabilities, over_samples
from fxprune.scoring.scorer import Context, register_scorer


@dataclass(frozen=True, slots=True)
class Spvr:
    """The change of the outputs when a group of correlated units is masked; needs no labels.

    Attributes:
        group_size: d, units masked together: 2 for CIFAR-10, 4 for Tiny-ImageNet, 8 for ImageNet in the paper.
        propagate: ``"coupling"``: a coupled channel is one unit; ``"stage"``: as the paper's Appendix B, layers that
            identity shortcuts join lose their own least groups together.
    """

    group_size: int = 2
    propagate: Literal["coupling", "stage"] = "coupling"
    name: str = "spvr"
    needs: tuple[str, ...] = ("masked outputs",)
    per_cost: bool = False
    defaults: Mapping[str, Any] = field(default_factory=lambda: {"min_keep": 0, "recover": "reinit"})

    def score(self, context: Context) -> dict[str, Tensor]:
        """Returns Eq. 2, ``sum over samples of [other class] + |change of the class' probability|``, of each unit's group.

        For each group's name ``[units]``.

        Raises:
            ScorerError: ``group_size`` or ``propagate`` is malformed, or an activation is not finite.
        """
        if isinstance(self.group_size, bool) or not isinstance(self.group_size, int) or self.group_size < 1:
            raise ScorerError(f"spvr: group_size must be an int of at least 1, got {self.group_size!r}")
        if self.propagate not in ("coupling", "stage"):
            raise ScorerError(f"spvr: propagate must be 'coupling' or 'stage', got {self.propagate!r}")
        groups = context.coupling.groups
        related = correlations(context)
        sets = {group.name: assign(related[group.name], self.group_size) for group in groups}
        scores = masked_scores(context, sets, disagreement, f"spvr({self.group_size})")
        found = spread(context.coupling, sets, scores)
        return round_scores(groups, found) if self.propagate == "stage" else found


def disagreement(dense: Any, masked: Any) -> float:
    """Returns ``[argmax f != argmax g] + |f_q - g_q|`` summed over samples, q the class that f predicts (Eq. 2).

    Classes as in `log_probabilities`; positions (pixels, tokens) are averaged.
    """
    (a, dim), (b, _) = log_probabilities(dense), log_probabilities(masked)
    f, g = a.exp(), b.exp()
    q = f.argmax(dim, keepdim=True)
    other = (g.argmax(dim, keepdim=True) != q).double()
    return over_samples(other + (f.gather(dim, q) - g.gather(dim, q)).abs())


def assign(correlation: Tensor, size: int) -> list[Ids]:
    """Returns sets of ``size`` units (the last may be short): each first unassigned unit with those closest to it.

    Algorithm 1, on the signed correlation ``[units, units]``; the positions in each set are in ascending order.
    """
    left = torch.ones(len(correlation), dtype=torch.bool)
    sets = []
    for unit in range(len(correlation)):
        if not left[unit]:
            continue
        row = torch.where(left, correlation[unit].cpu(), -torch.inf)
        row[unit] = torch.inf
        chosen = row.argsort(descending=True, stable=True)[: min(size, int(left.sum()))]
        left[chosen] = False
        sets.append(np.sort(chosen.numpy()))
    return sets


@torch.no_grad()
def correlations(context: Context) -> dict[str, Tensor]:
    """Returns the Pearson correlation of each group's units over samples (Eq. 3), ``[units, units]``; NaN becomes 0.

    A unit's value is what the next layers read of it: the activation itself, or the sum of absolute values over
    space, tokens and the unit's coordinates (Eq. 4). Where layers read a group at several places, the mean is taken.
    """
    coupling = context.coupling
    values: dict[Input, list[Tensor]] = {}
    for read, value in inputs_read(context, None, "spvr"):
        rows = value.double().reshape(len(value), -1, value.shape[-1])
        values.setdefault(read, []).append(rows.abs().sum(dim=1) if rows.shape[1] > 1 else rows[:, 0])
    sums = {g.name: torch.zeros(len(g.units), len(g.units), dtype=torch.float64) for g in coupling.groups}
    counts = Counter[str]()
    for read, parts in values.items():
        by_channel = _by_channel(context, read, torch.cat(parts))
        for group in coupling.groups:
            channels = coupling.units[group.units].tolist()
            if by_channel.keys() >= set(channels):
                sums[group.name] += _pearson(torch.stack([by_channel[channel] for channel in channels], dim=1))
                counts[group.name] += 1
    return {name: total / max(counts[name], 1) for name, total in sums.items()}


def _by_channel(context: Context, read: Input, matrix: Tensor) -> dict[int, Tensor]:
    """Returns one column for each channel id on an axis that contractions read."""
    found: dict[int, Tensor] = {}
    values = matrix.abs() if len(read.axis) > 1 else matrix
    for labels, sums in by_factor(context.coupling, read.axis, values):
        for row, column in zip(labels.tolist(), sums.T, strict=True):
            for channel in filter(None, row):
                found[channel] = found[channel].abs() + column.abs() if channel in found else column
    return found


def _pearson(columns: Tensor) -> Tensor:
    centred = columns - columns.mean(dim=0)
    norm = centred.norm(dim=0)
    return torch.nan_to_num((centred.T @ centred) / (norm[:, None] * norm), 0.0, 0.0, 0.0)


register_scorer("spvr", Spvr)

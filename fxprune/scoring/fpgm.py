"""FPGM: filters near the geometric median of their layer go first (He et al. 2019, arXiv 1811.00250, Eq. 6 to 8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxprune._base.names import fetch
from fxprune.algebra.channels import Ids
from fxprune.scoring.engine.shares import layers_that, remaining_share
from fxprune.scoring.scorer import Context, register_scorer


@dataclass(frozen=True, slots=True)
class GeometricMedian:
    """The sum of a unit's distances to the other units of its group, as a share of its layer's, over all makers.

    The paper prunes every layer by one ratio. Layers compare here as in `fxprune.scoring.magnitude`: by shares, weighed
    by what is left of their group.
    """

    name: str = "fpgm"
    needs: tuple[str, ...] = ("weights",)
    per_cost: bool = True
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def score(self, context: Context) -> dict[str, Tensor]:
        """Returns ``sum over the others j of |F_i - F_j|_2``, as shares; F_i holds all of a unit's coordinates."""
        coupling = context.coupling
        group_of = np.full(len(coupling.channels), -1, np.int64)
        for number, group in enumerate(coupling.groups):
            group_of[coupling.units[group.units]] = number
        total = context.zeros()
        for axis in coupling.axes:
            if not axis.makes:
                continue
            tensor = fetch(coupling.captured.module, axis.tensor).detach()
            here = context.zeros()
            for number in np.unique(group_of[axis.labels]):
                if number >= 0:
                    members = np.where(group_of[axis.labels] == number, axis.labels, 0)
                    channels, filters = filters_of(tensor.movedim(axis.dim, 0).flatten(1), members)
                    here[channels] = distances(filters, context.memory_limit).cpu().numpy()
            total += here / max(here.sum(), np.finfo(np.float64).tiny)
        return remaining_share(context.by_group(total), layers_that(context, read=True))


def filters_of(weight: Tensor, labels: Ids) -> tuple[Ids, Tensor]:
    """Returns the channels in ``labels`` (0 is none), and each one's rows side by side, ``[channels, rows x width]``.

    Args:
        weight: one row for each coordinate, ``[size, width]``.
        labels: ``[size, k]``; a channel with fewer rows than another is filled up with zeros.
    """
    coordinate, _ = np.nonzero(labels)
    channels, owner = np.unique(labels[labels > 0], return_inverse=True)
    order = np.argsort(owner, kind="stable")
    counts = np.bincount(owner, minlength=len(channels))
    place = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    filters = weight.new_zeros(len(channels), int(counts.max(initial=0)), weight.shape[1])
    at = [torch.from_numpy(index).to(weight.device) for index in (owner[order], place, coordinate[order])]
    filters[at[0], at[1]] = weight[at[2]]
    return channels, filters.flatten(1)


def distances(filters: Tensor, memory_limit: int) -> Tensor:
    """Returns the sum of each row's Euclidean distances to all rows, ``[rows]`` in float64.

    Args:
        filters: ``[rows, width]``; taken relative to their mean, so that little is lost by cancellation.
        memory_limit: bytes; beyond it blocks get smaller, and float32 takes the place of float64.
    """
    fits = 3 * 8 * filters.numel() <= memory_limit
    x = filters.to(torch.float64 if fits else torch.float32)
    x = x - x.mean(dim=0)
    step = max(1, memory_limit // (4 * 8 * max(len(x), 1)))
    sums = []
    for start in range(0, len(x), step):
        block = torch.cdist(x[start : start + step], x).double()
        rows = torch.arange(len(block), device=x.device)
        block[rows, rows + start] = 0  # a filter's distance to itself is rounding
        sums.append(block.sum(dim=1))
    return torch.cat(sums)


register_scorer("fpgm", GeometricMedian)

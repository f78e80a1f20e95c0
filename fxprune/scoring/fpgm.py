"""FPGM: filters near the geometric median of their layer go first (He et al. 2019, arXiv 1811.00250, Eq. 6 to 8)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from fxprune.algebra.channels import Ids
from fxprune.coupling.units import ParameterAxis
from fxprune.scoring.engine.columns import groups_of, in_parts, table_of
from fxprune.scoring.engine.shares import as_shares
from fxprune.scoring.scorer import Context, Scorer, register_scorer


@dataclass(frozen=True, slots=True)
class GeometricMedian(Scorer):
    """The sum of a unit's distances to the other units of its group, as a share of its layer's, over all makers.

    The paper prunes every layer by one ratio. Layers compare here as in `fxprune.scoring.magnitude`: by shares, weighed
    by what is left of their group.
    """

    name: str = "fpgm"
    needs: tuple[str, ...] = ("weights",)
    per_cost: bool = True

    def score(self, context: Context) -> dict[str, Tensor]:
        """Returns ``sum over the others j of |F_i - F_j|_2``, ``[units]``, as shares; F_i holds all of a unit's coordinates."""
        group_of = groups_of(context.coupling)
        axes = (axis for axis in context.coupling.axes if axis.makes)
        return as_shares(context, (_apart(context, axis, group_of) for axis in axes), made=True)


def _apart(context: Context, axis: ParameterAxis, group_of: Ids) -> tuple[Ids, npt.NDArray[np.float64]]:
    """Returns the channels that are units in one layer, and each one's distances from the others of its group."""
    rows, found = context.tensor(axis.tensor).movedim(axis.dim, 0).flatten(1), [(np.empty(0, np.int64), np.empty(0))]
    for number in np.unique(group_of[axis.labels]):
        if number >= 0:
            channels, filters = filters_of(rows, np.where(group_of[axis.labels] == number, axis.labels, 0))
            found.append((channels, distances(filters, context.memory_limit).cpu().numpy()))
    channels, apart = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return channels, apart


def filters_of(weight: Tensor, labels: Ids) -> tuple[Ids, Tensor]:
    """Returns the channels in ``labels`` (0 is none), and each one's rows side by side, ``[channels, rows x width]``.

    Args:
        weight: one row for each coordinate, ``[size, width]``.
        labels: ``[size, k]``; a channel with fewer rows than another is filled up with zeros.
    """
    channels, owner = np.unique(labels[labels > 0], return_inverse=True)
    table = torch.from_numpy(table_of(owner, np.nonzero(labels)[0], len(channels), len(weight)))
    return channels, functional.pad(weight, (0, 0, 0, 1))[table.to(weight.device)].flatten(1)


def distances(filters: Tensor, memory_limit: int) -> Tensor:
    """Returns the sum of each row's Euclidean distances to all rows, ``[rows]`` in float64.

    Args:
        filters: ``[rows, width]``; taken relative to their mean, so that little is lost by cancellation.
        memory_limit: bytes; beyond it blocks get smaller, and float32 takes the place of float64.
    """
    filters = in_parts(filters).flatten(1)
    fits = 3 * 8 * filters.numel() <= memory_limit
    x = filters.to(torch.float64 if fits else torch.float32)
    x = x - x.mean(dim=0)
    step = max(1, memory_limit // (4 * 8 * max(len(x), 1)))
    sums = []
    for start in range(0, len(x), step):
        block = torch.cdist(x[start : start + step], x).double()
        block.diagonal(start).zero_()  # a filter's distance to itself is rounding
        sums.append(block.sum(dim=1))
    return torch.cat(sums)


register_scorer("fpgm", GeometricMedian)

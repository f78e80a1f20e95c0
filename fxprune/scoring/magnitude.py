"""Magnitude: the norm of what makes a unit (L1: Li et al. 2017, arXiv 1608.08710, section 3.1; L2 likewise)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fxprune.algebra.channels import Ids
from fxprune.coupling.unit_scores import accumulate
from fxprune.coupling.units import ParameterAxis
from fxprune.scoring.engine.columns import wide
from fxprune.scoring.engine.shares import as_shares
from fxprune.scoring.scorer import Context, Scorer, register_scorer


@dataclass(frozen=True, slots=True)
class Magnitude(Scorer):
    """The Lp norm of a unit's own weights as a share of its layer's, summed over the layers that make it.

    Scores are weighed by what is left of their group (LAMP), so that layers of any scale compare.

    Attributes:
        p: 1 or 2.
    """

    p: int = 2
    name: str = "magnitude"
    needs: tuple[str, ...] = ("weights",)
    per_cost: bool = True

    def score(self, context: Context) -> dict[str, Tensor]:
        """Returns ``(sum over the unit's coordinates and the other dims of |w|^p)^(1/p)``, ``[units]``, as shares, over all makers."""
        axes = (axis for axis in context.coupling.axes if axis.makes)
        return as_shares(context, (self._norms(context, axis) for axis in axes), made=True)

    def _norms(self, context: Context, axis: ParameterAxis) -> tuple[Ids, npt.NDArray[np.float64]]:
        weight = wide(context.tensor(axis.tensor))
        norms = torch.linalg.vector_norm(weight, self.p, [dim for dim in range(weight.dim()) if dim != axis.dim])
        channels, labels = np.unique(axis.labels, return_inverse=True)
        powers = np.zeros(len(channels))
        accumulate(powers, labels.reshape(axis.labels.shape), norms.double() ** self.p)
        return channels, powers ** (1 / self.p)


register_scorer("magnitude", Magnitude)
register_scorer("l1", lambda: Magnitude(p=1, name="l1"))
register_scorer("l2", lambda: Magnitude(p=2, name="l2"))

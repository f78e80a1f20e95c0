"""Magnitude: the norm of what makes a unit (L1: Li et al. 2017, arXiv 1608.08710, section 3.1; L2 likewise)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxprune._base.names import fetch
from fxprune.coupling.unit_scores import accumulate
from fxprune.scoring.engine.shares import layers_that, remaining_share
from fxprune.scoring.scorer import Context, register_scorer


@dataclass(frozen=True, slots=True)
class Magnitude:
    """The Lp norm of a unit's own weights as a share of its layer's, summed over the layers that make it.

    Scores are weighed by what is left of their group (LAMP), so that layers of any scale compare.

    Attributes:
        p: 1 or 2.
    """

    p: int = 2
    name: str = "magnitude"
    needs: tuple[str, ...] = ("weights",)
    per_cost: bool = True
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def score(self, context: Context) -> dict[str, Tensor]:
        """Returns ``(sum over the unit's coordinates and the other dims of |w|^p)^(1/p)``, as shares, over all makers."""
        coupling = context.coupling
        total = context.zeros()
        is_unit = np.zeros(len(total), bool)
        is_unit[coupling.units] = True
        for axis in coupling.axes:
            if not axis.makes:
                continue
            tensor = fetch(coupling.captured.module, axis.tensor).detach()
            others = [d for d in range(tensor.dim()) if d != axis.dim]
            wide = tensor if tensor.dtype.itemsize >= 4 else tensor.float()
            norms = torch.linalg.vector_norm(wide, self.p, others)
            channels, labels = np.unique(axis.labels, return_inverse=True)
            powers = np.zeros(len(channels))
            accumulate(powers, labels.reshape(axis.labels.shape), norms.double() ** self.p)
            here = np.where(is_unit[channels], powers, 0.0) ** (1 / self.p)
            total[channels] += here / max(here.sum(), np.finfo(np.float64).tiny)
        return remaining_share(context.by_group(total), layers_that(context, read=True))


register_scorer("magnitude", Magnitude)
register_scorer("l1", lambda: Magnitude(p=1, name="l1"))
register_scorer("l2", lambda: Magnitude(p=2, name="l2"))

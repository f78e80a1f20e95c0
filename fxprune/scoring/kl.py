"""KL: how far masking a unit moves the predicted distribution (CURL, Luo and Wu, CVPR 2020, arXiv 1911.08114, Eq. 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from fxprune.scoring.engine.masking import masked_scores, spread
from fxprune.scoring.loss import log_probabilities, over_samples
from fxprune.scoring.scorer import Context, register_scorer


@dataclass(frozen=True, slots=True)
class Kl:
    """The Kullback-Leibler divergence of the masked outputs from the dense ones, unit by unit; needs no labels."""

    name: str = "kl"
    needs: tuple[str, ...] = ("masked outputs",)
    per_cost: bool = True
    defaults: Mapping[str, Any] = field(default_factory=lambda: {"recover": "covariance"})

    def score(self, context: Context) -> dict[str, Tensor]:
        """Returns ``sum over samples of KL(f || f_masked)``, ``[units]``, for each unit masked alone."""
        sets = {g.name: list(np.arange(len(g.units)).reshape(-1, 1)) for g in context.coupling.groups}
        return spread(context.coupling, sets, masked_scores(context, sets, divergence, "kl"))


def divergence(dense: Any, masked: Any) -> float:
    """Returns ``KL(f || g)`` summed over samples, averaged over positions (classes as in `log_probabilities`)."""
    (f, dim), (g, _) = log_probabilities(dense), log_probabilities(masked)
    return over_samples((f.exp() * (f - g)).sum(dim))


register_scorer("kl", Kl)

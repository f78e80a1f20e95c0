"""Random: the baseline that every criterion has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.scoring.scorer import Context, Scorer, register_scorer


@dataclass(frozen=True, slots=True)
class Random(Scorer):
    """Uniform scores; the same seed gives the same scores."""

    name: str = "random"
    needs: tuple[str, ...] = ()
    per_cost: bool = False

    def score(self, context: Context) -> dict[str, Tensor]:
        """Returns one draw from [0, 1) for each unit, ``[units]``."""
        generator = torch.Generator().manual_seed(context.seed)
        return {g.name: torch.rand(len(g.units), generator=generator) for g in context.coupling.groups}


register_scorer("random", Random)

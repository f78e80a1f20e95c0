"""A criterion's scores, computed once and used for several budgets."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from torch import nn

import fxprune
from fxprune.scoring import scorer_of


@dataclass(frozen=True)
class Scored:
    """Scores that are there already."""

    name: str
    scores: Any
    per_cost: bool
    defaults: Any
    needs: tuple[str, ...] = ()

    def score(self, context: fxprune.Context) -> Any:
        """Returns them."""
        return self.scores


def scored(model: nn.Module, method: str, data: Any, seed: int, **options: Any) -> tuple[Scored, float]:
    """Returns a criterion's scores on ``data`` (as `fxprune.compile` takes it, with its options), and the seconds."""
    held: dict[str, Any] = {}
    scorer = scorer_of(method)

    @dataclass(frozen=True)
    class Scoring:
        name: str = method
        needs: tuple[str, ...] = ()
        per_cost: bool = scorer.per_cost
        defaults: Any = None

        def score(self, context: fxprune.Context) -> Any:
            held["scores"] = scorer.score(context)
            return held["scores"]

    start = time.perf_counter()
    fxprune.compile(
        model,
        data,
        ratios=0.0,
        method=Scoring(defaults={}),
        recover=None,
        verify=False,
        seed=seed,
        progress=False,
        **options,
    )
    return Scored(method, held["scores"], scorer.per_cost, {}), time.perf_counter() - start

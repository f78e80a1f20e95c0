"""The points that no other beats, and the best within bounds."""

from __future__ import annotations

import math

import pytest

from fxprune import Budget, BudgetError
from fxprune.budget.cost import Cost
from fxprune.reporting.pareto import Point, Sweep


def points_of(*rows: tuple[int, int, float]) -> Sweep:
    points = [
        Point(method="m", budget=Budget(params=p), cost=Cost(p, m, p), fidelity=f, seconds=i)
        for i, (p, m, f) in enumerate(rows)
    ]
    return Sweep(points=tuple(points), before=Cost(1000, 1000, 1000))


def test_a_sweep_is_shown_in_a_few_lines() -> None:
    found = points_of(*((i, i, 0.5) for i in range(1, 60)))
    assert repr(found).startswith("fxprune: 59 points") and len(repr(found).splitlines()) <= 25
    assert "<th>parameters</th>" in found._repr_html_()


def test_pareto_and_best() -> None:
    found = points_of(
        (800, 800, 0.9), (700, 700, 0.9), (500, 600, 0.8), (400, 700, 0.8), (300, 300, 0.5), (300, 300, math.nan)
    )
    assert [p.seconds for p in found.pareto] == [1, 2, 3, 4]
    assert found.best().seconds == 1 and found.best(params=0.5).seconds == 3
    assert found.best(params=500, macs=0.6).seconds == 2 and found.best(macs=300).seconds == 4
    with pytest.raises(BudgetError, match="the smallest point has 300 parameters: sweep smaller budgets"):
        found.best(params=299)
    twins = points_of((10, 10, 0.5), (10, 10, 0.5))
    assert len(twins.pareto) == 2

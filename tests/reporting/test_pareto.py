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


def measured(**values: float) -> Point:
    """Returns a point of which all but the given values is that of every other one."""
    return Point(
        method="m", budget=Budget(params=5), cost=Cost(5, 5, 5), fidelity=values.pop("fidelity", 0.9), **values
    )


def front(*points: Point) -> list[int]:
    best = Sweep(points=points, before=Cost(10, 10, 10), dense_ms=8.0).pareto
    return [i for i, point in enumerate(points) if any(point is one for one in best)]


def test_a_lead_in_latency_is_one_beyond_its_error() -> None:
    close = [measured(latency_ms=ms, latency_error_ms=0.3) for ms in (4.0, 4.4)]
    assert front(*close) == [0, 1]
    assert front(close[0], measured(latency_ms=4.5, latency_error_ms=0.3)) == [0]
    assert front(close[0], measured(latency_ms=4.1, latency_error_ms=0.0)) == [0, 1]
    assert front(measured(latency_ms=4.0), measured(latency_ms=4.1)) == [0]


def test_a_lead_in_fidelity_is_one_only_with_an_agreement_beyond_its_error() -> None:
    best = measured(fidelity=0.92, agreement=0.90, deviation=0.02)
    assert front(best, measured(fidelity=0.90, agreement=0.88, deviation=0.02)) == [0, 1]
    assert front(best, measured(fidelity=0.90, agreement=0.86, deviation=0.02)) == [0]
    assert front(best, measured(fidelity=0.95, agreement=0.80, deviation=0.02)) == [0, 1]
    assert front(best, measured(fidelity=0.90)) == [0]


def test_within_noise_what_is_smaller_is_enough() -> None:
    small = Point(
        method="m", budget=Budget(params=4), cost=Cost(4, 4, 4), fidelity=0.9, latency_ms=4.2, latency_error_ms=0.2
    )
    assert front(small, measured(latency_ms=4.0, latency_error_ms=0.2)) == [0]
    assert front(small, measured(latency_ms=3.0, latency_error_ms=0.2)) == [0, 1]


def test_values_of_the_users_own_are_exact() -> None:
    one, other = (measured(value=v, agreement=0.9, deviation=0.1) for v in (0.50, 0.51))
    assert front(one, other) == [1]


def test_figures_stand_with_their_errors_and_the_speed_up_is_dense_by_pruned() -> None:
    found = Sweep(
        points=(measured(latency_ms=4.0, latency_error_ms=0.25, agreement=0.9, deviation=0.02),),
        before=Cost(10, 10, 10),
        dense_ms=8.0,
    )
    heads, ((*cells,),) = found.table()
    row = dict(zip(heads, cells, strict=True))
    assert (row["ms"], row["speed-up"], row["agreement"]) == ("4 +- 0.25", "2.00 x", "0.9000 +- 0.02")
    (point,) = found.to_dict()["points"]
    assert (point["latency_error_ms"], point["deviation"]) == (0.25, 0.02)

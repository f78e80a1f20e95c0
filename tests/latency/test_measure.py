"""Measuring: calls take turns, and what is told is a median."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from fxprune.latency.measure import Timing, interleaved


def test_calls_take_turns_and_the_median_is_told() -> None:
    now, order = [0.0], []
    cost = {"a": itertools.cycle([0.010, 0.010, 0.050]), "b": itertools.cycle([0.020])}

    def call(name: str) -> Callable[[], None]:
        def run() -> None:
            order.append(name)
            now[0] += next(cost[name])

        return run

    a, b = interleaved([call("a"), call("b")], repeats=9, seconds=0.0, clock=lambda: now[0])
    assert a.ms == pytest.approx(10.0) and b.ms == pytest.approx(20.0) and a.best == pytest.approx(10.0)
    assert len(a.samples) == len(b.samples) == 9
    assert "".join(order).endswith("abba" * 4 + "ab")  # nobody always comes first
    assert b.beside(a) == pytest.approx(2.0)


def test_quick_calls_are_repeated_within_a_sample_and_measuring_stops_when_it_stands_still() -> None:
    now, count = [0.0], [0]

    def call() -> None:
        count[0] += 1
        now[0] += 1e-5

    (found,) = interleaved([call], repeats=4, seconds=100.0, clock=lambda: now[0])
    assert found.ms == pytest.approx(0.01) and found.error == pytest.approx(0, abs=1e-9)
    assert len(found.samples) == 4 and count[0] >= 400  # 100 calls make a sample of a millisecond


def test_a_ratio_is_taken_round_by_round() -> None:
    slow, fast = Timing(0, 0, (10.0, 20.0, 40.0)), Timing(0, 0, (5.0, 10.0, 20.0))
    assert fast.beside(slow) == 0.5


def test_the_error_beside_another_timing_is_that_of_the_ratios() -> None:
    slow = Timing(10.0, 0.0, (10.0, 20.0, 40.0))
    assert Timing(5.0, 0.0, (5.0, 10.0, 20.0)).error_beside(slow) == 0.0  # both slowed down together
    assert Timing(5.0, 0.0, (4.0, 10.0, 22.0)).error_beside(slow) > 0.0

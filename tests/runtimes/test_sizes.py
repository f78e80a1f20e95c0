"""Sizes that an exported file is tried at."""

from __future__ import annotations

from fxprune.runtimes.sizes import other_sizes


def test_other_sizes_stay_within_bounds_and_change_together() -> None:
    class Bounds:
        def __init__(self, lower: int, upper: int) -> None:
            self.lower, self.upper = lower, upper

    bounds = {"a": Bounds(2, 9), "b": Bounds(2, 8), "c": Bounds(2, 2), "d": Bounds(3, 100)}
    assert list(other_sizes({"a": 8, "b": 8, "c": 2, "d": 3}, bounds)) == [{"a": 7, "b": 7, "c": 2, "d": 4}]
    assert list(other_sizes({"c": 2}, bounds)) == [] and list(other_sizes({}, {})) == []

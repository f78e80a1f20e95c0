"""Sizes that an exported file is tried at."""

from __future__ import annotations

from fxprune.runtimes.sizes import other_sizes, within


def test_other_sizes_stay_within_bounds_and_change_together() -> None:
    class Bounds:
        def __init__(self, lower: int, upper: int) -> None:
            self.lower, self.upper = lower, upper

    bounds = {"a": Bounds(2, 9), "b": Bounds(2, 8), "c": Bounds(2, 2), "d": Bounds(3, 100)}
    own = {"a": 8, "b": 8, "c": 2, "d": 3}
    assert other_sizes(own, lambda sizes: within(sizes, bounds)) == {"a": 7, "b": 7, "c": 2, "d": 4}
    assert other_sizes({"c": 2}, lambda sizes: within(sizes, bounds)) == {"c": 2}
    assert other_sizes({}, lambda sizes: True) == {}


def test_other_sizes_are_those_that_are_allowed() -> None:
    assert other_sizes({"a": 640}, lambda sizes: sizes["a"] % 32 == 0) == {"a": 320}
    assert other_sizes({"a": 32, "b": 32}, lambda sizes: sizes["a"] % 4 == 0) == {"a": 36, "b": 36}
    assert other_sizes({"a": 96}, lambda sizes: sizes["a"] % 96 == 0) == {"a": 192}


def test_sizes_that_cannot_change_together_change_apart() -> None:
    """A batch of 32 images of 32 pixels, whose height is a multiple of 32 up to 64."""
    allowed = {"batch": range(2, 40), "height": (32, 64)}
    found = other_sizes({"batch": 32, "height": 32}, lambda sizes: all(sizes[s] in allowed[s] for s in sizes))
    assert found == {"batch": 33, "height": 64}

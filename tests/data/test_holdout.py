"""What is held out of the calibration data: the last tenth, one batch at least, none of a single one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fxprune.data.holdout import Part, Split, split_of


class Unsized:
    """Batches that do not tell how many they are; counts how often they are gone through."""

    def __init__(self, count: int) -> None:
        self.count, self.passes = count, 0

    def __iter__(self) -> Iterator[int]:
        self.passes += 1
        return iter(range(self.count))


@pytest.mark.parametrize(
    ("count", "share", "judged", "data"),
    [
        (1, 0.1, (0, 1), "alone"),
        (1, 0.9, (0, 1), "alone"),
        (2, 0.1, (1, 2), "held out"),
        (2, 0.99, (1, 2), "held out"),
        (9, 0.1, (8, 9), "held out"),
        (19, 0.1, (18, 19), "held out"),
        (30, 0.1, (27, 30), "held out"),
        (128, 0.1, (116, 128), "held out"),
        (10, 0.5, (5, 10), "held out"),
        (30, 0, (0, 3), "seen"),
        (3, 0.0, (0, 1), "seen"),
    ],
)
def test_the_last_batches_are_held_out(count: int, share: float, judged: tuple[int, int], data: str) -> None:
    fitted = judged[0] if data == "held out" else None
    for batches in (range(count), Unsized(count)):
        assert split_of(batches, share, fits=True) == Split(fitted, judged, data)


def test_where_nothing_is_fitted_the_first_are_judged_and_nothing_is_counted() -> None:
    assert split_of(range(30), 0.1, fits=False) == Split(None, (0, 3), "unfitted")
    unsized = Unsized(30)
    assert split_of(unsized, 0.1, fits=False) == Split(None, (0, 1), "unfitted") and unsized.passes == 0


def test_a_part_is_gone_through_again_and_again() -> None:
    part = Part(Unsized(9), 6, 8)
    assert [*part] == [*part] == [6, 7] and len(part) == 2

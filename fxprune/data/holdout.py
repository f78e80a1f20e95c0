"""What of the calibration data the result is judged on: some that recovery has not seen, where there is more than one batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from operator import length_hint
from typing import Generic, TypeVar

T = TypeVar("T")

#: The share of the batches that is judged where none is held out.
_SHARE = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Part(Generic[T]):
    """Some of the batches, in their order; goes through the whole anew each time.

    Attributes:
        source: the whole.
        start: the number of the first.
        stop: that of the first that is none of them.
    """

    source: Iterable[T]
    start: int
    stop: int

    def __iter__(self) -> Iterator[T]:
        """Yields them."""
        return islice(iter(self.source), self.start, self.stop)

    def __len__(self) -> int:
        """Returns how many there are."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Split:
    """Which batches recovery learns from, and which the result is judged on.

    Attributes:
        fitted: recovery takes the first so many; None for all.
        judged: the numbers of the first that is judged, and of the first behind those.
        data: what recovery has seen of those, a key of `fxprune.results.fidelity.DATA`.
    """

    fitted: int | None
    judged: tuple[int, int]
    data: str


def count_of(batches: Iterable[object]) -> int:
    """Returns how many batches there are, gone through only where they do not tell."""
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return sum(1 for _ in batches)


def split_of(batches: Iterable[object], share: float, *, fits: bool) -> Split:
    """Returns which batches are held out: the last ones, a share of all, one at least; none of a single batch.

    Where none is, the first ones are judged, as many; of data that do not tell how many they are, and where nothing is fitted, the first one.

    Args:
        batches: the calibration data; gone through where they do not tell how many they are, if that matters.
        share: that is held out; 0 for none.
        fits: there is a recovery, which fits something to the others.
    """
    count = count_of(batches) if fits else length_hint(batches, 1)
    part = min(max(1, int(count * (share or _SHARE) + 1e-9)), max(1, count - 1))
    if not fits:
        return Split(None, (0, part), "unfitted")
    if count < 2 or not share:
        return Split(None, (0, part), "seen" if count > 1 else "alone")
    return Split(count - part, (count - part, count), "held out")

"""Widths: which multiple of channels this hardware likes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeAlias

from fxprune.latency.layout import Layout
from fxprune.latency.operation import Operation

#: The multiples that are tried.
MULTIPLES = (1, 2, 4, 8, 16, 32)

#: A multiple is liked if its widths take at most this share longer than the next multiples of the largest would.
TOLERANCE = 0.05

#: The operations that are tried: those with the most time, of widths that leave room for it.
HOT, ROOM = 4, 64

#: Returns the milliseconds of an operation at several widths, timed in turns; none if it cannot run alone.
Compare: TypeAlias = Callable[[Operation, Sequence[tuple[int, ...]]], list[float]]


def liked_multiple(layout: Layout, compare: Compare) -> tuple[int, str]:
    """Returns the smallest multiple beyond which nothing is gained, and why, in one line.

    The hottest products are timed at widths that are odd multiples of 1, 2, 4, 8 and 16, between two multiples of 32, and
    set against the straight line between those two.

    Args:
        layout: of the captured model.
        compare: the stopwatch.
    """
    counted = Counter(step.operation for step in layout.steps)
    wide = [op for op in counted if op.contracts and any(width >= ROOM for width in op.widths)]
    if not wide:
        return 1, f"round_to=1: no layer has {ROOM} channels that may go"
    full = [sum(compare(op, [op.widths])) for op in wide]
    hottest = sorted(zip(full, wide, strict=True), key=lambda pair: -pair[0] * counted[pair[1]])[:HOT]
    weights, penalties = 0.0, dict.fromkeys(MULTIPLES, 0.0)
    for ms, operation in hottest:
        found = _penalties(operation, compare)
        if found:
            weight = ms * counted[operation]
            weights += weight
            for multiple, penalty in found.items():
                penalties[multiple] += weight * penalty
    if not weights:
        return 1, "round_to=1: no layer could be measured alone"
    mean = {multiple: penalty / weights for multiple, penalty in penalties.items()}
    chosen = next(m for m in MULTIPLES if all(mean[n] <= TOLERANCE for n in MULTIPLES if n >= m))
    return (
        chosen,
        f"round_to={chosen}: {_why(mean)}, against multiples of {MULTIPLES[-1]}, in {len(hottest)} hot layer shapes",
    )


def _penalties(operation: Operation, compare: Compare) -> dict[int, float]:
    """Returns by how much longer each multiple takes, as a share."""
    largest = MULTIPLES[-1]
    tops = [max(2, int(0.75 * w) // largest) * largest if w >= ROOM else w for w in operation.widths]

    def less(by: int) -> tuple[int, ...]:
        return tuple(t - by if w >= ROOM else w for t, w in zip(tops, operation.widths, strict=True))

    times = compare(operation, [less(by) for by in (0, *MULTIPLES)])
    if not times:
        return {}
    top, *rest = times
    line = [top + (rest[-1] - top) * by / largest for by in MULTIPLES]
    return {by: max(0.0, ms / expected - 1) for by, ms, expected in zip(MULTIPLES, rest, line, strict=True)}


def _why(mean: dict[int, float]) -> str:
    return ", ".join(f"multiples of {m} take {100 * mean[m]:.0f} % longer" for m in MULTIPLES[:-1])

"""Widths: which multiple of channels this hardware likes, by what is known of it, or by measuring it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import nn

from fxprune._base.ranks import gathered
from fxprune.budget.budget import Budget
from fxprune.budget.constraints import Constraints
from fxprune.budget.multiples import itemsize_of, usual_multiple
from fxprune.coupling.coupling import Coupling
from fxprune.data.checks import device_of
from fxprune.latency.layout import Layout, layout_of
from fxprune.latency.operation import Operation
from fxprune.latency.stopwatch import stopwatch_of
from fxprune.runtimes.setting import Setting

#: The multiples that are tried.
MULTIPLES = (1, 2, 4, 8, 16, 32)

#: A multiple is liked if its widths take at most this share longer than the next multiples of the largest would.
TOLERANCE = 0.05

#: The operations that are tried: those with the most time, of widths that leave room for it.
HOT, ROOM = 4, 64

#: Returns the milliseconds of an operation at several widths, timed in turns; none if it cannot run alone.
Compare: TypeAlias = Callable[[Operation, Sequence[tuple[int, ...]]], list[float]]


def usual_widths(model: nn.Module, budget: Budget | None, constraints: Constraints) -> Constraints:
    """Returns the constraints with the multiple that the device works in, for weights of the model's dtype, eased in narrow groups.

    The device is that of the budget's latency, or else where the model is; a model without values is for this processor.
    """
    device = device_of(model)
    if budget is not None and budget.bounds_latency:
        device = torch.device(budget.setting(device).device)
    every = gathered(
        usual_multiple(device, itemsize_of(model))
    )  # processes of one compilation may run on unlike processors
    return replace(constraints, round_to=max(every), eased=True)


def liked_widths(
    model: nn.Module, coupling: Coupling, budget: Budget | None, constraints: Constraints
) -> tuple[Constraints, tuple[str, ...]]:
    """Returns the constraints with the multiple that the hardware likes, and why it is that one.

    It is measured where the budget's latency is, or else where the model is, with the example's batch.
    """
    captured = coupling.captured
    if budget is not None and budget.bounds_latency:
        setting = budget.setting(device_of(model))
    else:
        setting = Setting.of(device_of(model), next((len(leaf) for leaf in captured.example if leaf.ndim), 1))
    layout = layout_of(coupling, setting.batch_size, fused=True)
    multiple, why = liked_multiple(layout, stopwatch_of(model, captured, setting).compare)
    return replace(constraints, round_to=multiple), (why,)


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
    found = [(ms * counted[operation], _penalties(operation, compare)) for ms, operation in hottest]
    whole = sum(weight for weight, penalties in found if penalties)
    if not whole:
        return 1, "round_to=1: no layer could be measured alone"
    mean = {by: sum(weight * penalties.get(by, 0.0) for weight, penalties in found) / whole for by in MULTIPLES}
    chosen = next(m for m in MULTIPLES if all(mean[n] <= TOLERANCE for n in MULTIPLES if n >= m))
    longer = ", ".join(f"multiples of {by} take {100 * mean[by]:.0f} % longer" for by in MULTIPLES[:-1])
    why = f"{longer}, against multiples of {MULTIPLES[-1]}, in {len(hottest)} hot layer shapes"
    return chosen, f"round_to={chosen}: {why}"


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

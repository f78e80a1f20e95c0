"""What `fxprune.compile` asks of this package: how to meet a latency, and which widths to round to."""

from __future__ import annotations

import os
from dataclasses import replace

from torch import nn

from fxprune.budget.budget import Budget
from fxprune.budget.constraints import Constraints
from fxprune.budget.setting import Setting
from fxprune.capturing.captured import Captured
from fxprune.coupling.coupling import Coupling
from fxprune.data.checks import device_of
from fxprune.latency.layout import layout_of
from fxprune.latency.search import Meeting
from fxprune.latency.stopwatch import stopwatch_of
from fxprune.latency.store import store_of
from fxprune.latency.table import Table
from fxprune.latency.widths import liked_multiple


def meeting_of(
    model: nn.Module, captured: Captured, budget: Budget | None, constraints: Constraints, *,
    cache_dir: str | os.PathLike[str] | None = None, progress: bool = False,
) -> Meeting | None:  # fmt: skip
    """Returns what meets the latency that a budget bounds, or None if it bounds none.

    Raises:
        BudgetError: the budget's device is not here, or the model does not take batches of its size.
    """
    if budget is None or not budget.bounds_latency:
        return None
    times = stopwatch_of(model, captured, budget.setting(device_of(model)))
    store = store_of(times.setting, cache_dir)
    return Meeting(times, budget, Table(times.operation, store, constraints.round_to, progress=progress))


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
        size = next((len(leaf) for leaf in captured.example if leaf.ndim), 1)
        setting = Setting.of(device_of(model), size)
    layout = layout_of(coupling, setting.batch_size, fused=True)
    multiple, why = liked_multiple(layout, stopwatch_of(model, captured, setting).compare)
    return replace(constraints, round_to=multiple), (why,)

"""Schedule: where a budget's bounds stand on the way from the original to the pruned model."""

from __future__ import annotations

import math
from dataclasses import replace

from fxprune.budget.budget import Budget
from fxprune.budget.cost import Cost


def schedule(budget: Budget, before: Cost, progress: float, dense_ms: float | None = None) -> Budget:
    """Returns the absolute bounds at a point of the way, 0 at the start and 1 at the end; the last is exact."""
    limits = {
        "params": (budget.limits(before).get(0), before.params),
        "macs": (budget.limits(before).get(1), before.macs),
    }
    counts = {
        name: limit if progress >= 1 else max(limit, math.floor(full * (limit / full) ** progress))
        for name, (limit, full) in limits.items()
        if limit is not None
    }
    here = replace(budget, params=counts.get("params"), macs=counts.get("macs"))
    if dense_ms is None:
        return here
    last = budget.latency_ms or (budget.latency or 1.0) * dense_ms
    ms = max(last, dense_ms * (last / dense_ms) ** progress) if progress < 1 else last
    return replace(here, latency=None, latency_ms=ms)

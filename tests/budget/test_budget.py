"""Budgets: what is none is refused, with what to write."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fxprune._base.errors import BudgetError
from fxprune.budget.budget import Budget, as_budget


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latency": 1.5}, r"latency must lie in \(0, 1\]; milliseconds are latency_ms, got 1.5"),
        ({"latency": 0.0}, "latency must lie"),
        ({"latency_ms": -1}, "latency_ms must lie above 0, .*got -1"),
        ({"latency_ms": math.nan}, "latency_ms must lie"),
        ({"latency_ms": math.inf}, "latency_ms must lie"),
        ({"latency_ms": 10**400}, "latency_ms must lie"),
        ({"latency": 0.5, "batch_size": 2**63}, "batch_size: expected an int of at least 1"),
        ({"latency_ms": True}, "latency_ms must be a number, got True"),
        ({"latency": "half"}, "latency must be a number, got 'half'"),
        ({"latency": 0.5, "latency_ms": 3.0}, "either latency .* or latency_ms"),
        (
            {"latency": 0.5, "backend": "tensorrt"},
            "backend: expected one of eager, compiled, onnxruntime, torch.export, aotinductor.*, got 'tensorrt'",
        ),
        ({"latency": 0.5, "batch_size": 0}, "batch_size: expected an int of at least 1, .*got 0"),
        ({"latency": 0.5, "threads": 1.5}, "threads: expected an int of at least 1, .*got 1.5"),
        ({"latency": 0.5, "device": "gpu9"}, "device: expected one such as 'cpu' or 'cuda:0', got 'gpu9'"),
        ({"params": 0.5, "batch_size": 4}, "say how a latency is measured, but none is bounded"),
        ({}, "got neither"),
    ],
)
def test_malformed_latencies(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        Budget(**arguments)


@pytest.mark.parametrize("bad", [0.0, -0.5, 1.5, 2, True, "half", None, float("nan")])
def test_malformed_budgets(bad: Any) -> None:
    with pytest.raises(BudgetError):
        as_budget(bad)


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"params": 0.0},
        {"params": 1.1},
        {"macs": -3},
        {"macs": 0},
        {"params": True},
        {"params": "0.5"},
        {"params": 10**30},
        {"macs": 2**63},
    ],
)
def test_malformed_bounds(bad: dict[str, Any]) -> None:
    with pytest.raises(BudgetError):
        Budget(**bad)

"""The record of a latency: by how much a limit is met or missed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fxprune._base.errors import PlanError
from fxprune.results.latency import Latency
from fxprune.results.record import Report


def _latency(**changes: Any) -> Latency:
    values: dict[str, Any] = {
        "dense_ms": 10.0,
        "measured_ms": 6.0,
        "predicted_ms": 5.5,
        "limit_ms": 5.0,
        "backend": "eager",
        "batch_size": 1,
        "device": "cpu",
        "threads": 2,
    }
    return Latency(**values | changes)


def test_the_record_says_by_how_much_a_limit_is_missed() -> None:
    assert not _latency().met and _latency(limit_ms=6.0).met
    assert str(_latency()) == (
        "latency: 10 ms -> 6 ms (speed-up 1.67 x), predicted 5.5 ms; limit 5 ms: over by 1 ms (20.0%); eager, batch 1, cpu, 2 threads"
    )


def test_large_figures_are_written_out() -> None:
    assert "predicted 5.5 ms; limit 1000 ms: met" in str(_latency(limit_ms=1000.0))


def test_the_record_is_kept_with_the_report() -> None:
    report = Report(params=(2, 1), macs=(2, 1), bytes=(8, 4), method="l1", latency=_latency())
    data = json.loads(json.dumps(report.to_dict()))
    assert Report.from_dict(data) == report
    assert Report.from_dict({**data, "latency": None}).latency is None
    later = ("latency", "layers", "scores", "doubt", "compared", "recover", "form", "shifts", "fidelity")
    old = {k: v for k, v in data.items() if k not in later} | {"schema": 1}
    assert Report.from_dict(old).latency is None
    for damage in ({"threads": "two"}, {"dense_ms": 0}, {"more": 1}):
        with pytest.raises(PlanError, match="latency"):
            Report.from_dict({**data, "latency": {**data["latency"], **damage}})

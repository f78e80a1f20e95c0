"""The report as data: exact both ways, and a clear error for what is damaged."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from torch import nn

from fxprune._base.errors import FxpruneError, PlanError
from fxprune.results.attached import report
from fxprune.results.fidelity import Fidelity
from fxprune.results.record import Report
from tests.support.reports import make_report


def test_round_trip_through_json() -> None:
    found = make_report()
    assert Report.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found
    odd = make_report(max_error=math.inf, verified=None, tolerance=None)
    assert Report.from_dict(json.loads(json.dumps(odd.to_dict(), allow_nan=False))) == odd
    nan = Report.from_dict(make_report(max_error=math.nan).to_dict())
    assert nan.max_error is not None and math.isnan(nan.max_error)


def test_reports_of_format_1_stay_readable() -> None:
    found = make_report()
    data = found.to_dict() | {"schema": 1}
    data["groups"] = [row[:5] for row in data["groups"]]
    for key in ("layers", "scores", "latency", "doubt", "compared", "recover", "form", "shifts", "fidelity"):
        data.pop(key, None)
    assert Report.from_dict(data) == found
    assert found.groups[0].producers == found.groups[0].layers and found.groups[0].consumers == ()


def test_reports_of_format_3_do_not_tell_the_recovery() -> None:
    data = make_report(recover="covariance").to_dict() | {"schema": 3}
    del data["recover"], data["form"], data["shifts"], data["fidelity"]
    assert Report.from_dict(data) == make_report()


def test_reports_of_format_5_do_not_tell_the_fidelity() -> None:
    data = make_report(fidelity=Fidelity(explained=0.5, error=0.1)).to_dict() | {"schema": 5}
    del data["fidelity"]
    assert Report.from_dict(data) == make_report() and make_report().fidelity is None


@pytest.mark.parametrize("schema", [7, 1000])
def test_newer_formats_are_refused(schema: int) -> None:
    data = make_report().to_dict() | {"schema": schema, "surprise": 1}
    with pytest.raises(PlanError, match=f"format {schema} is not one that this fxprune reads .*upgrade"):
        Report.from_dict(data)


def test_a_format_that_is_none() -> None:
    with pytest.raises(PlanError, match="schema: expected one of 1, 2, 3, 4, 5, 6, got 0"):
        Report.from_dict(make_report().to_dict() | {"schema": 0})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("params", [1], "params: expected 2 entries"),
        ("params", [1, -1], "params: expected a whole number"),
        ("verified", 1, "verified: expected true or false"),
        ("max_error", "much", "max_error: expected a number"),
        ("groups", [["a", "channel", [], 1]], r"groups\[0\]: expected 6 entries"),
        ("groups", [["a", "channel", ["b"], 1, 1, 2]], r"groups\[0\]: 2 of 1 layers make its units"),
        ("layers", [["a", 1, 2, 3]], r"layers\[0\]: expected 5 entries"),
        ("scores", {"unit": "score"}, "scores: astray, cut, edges, groups, log missing"),
        ("frozen", [{}], r"frozen\[0\]: expected an array"),
        ("seconds", {"capture": "long"}, "expected a number"),
        ("notes", None, "notes: expected an array"),
        ("more", 1, "unknown entries"),
    ],
)
def test_damaged_data(key: str, value: Any, message: str) -> None:
    data = {**make_report().to_dict(), key: value}
    with pytest.raises(PlanError, match=message):
        Report.from_dict(data)
    with pytest.raises(PlanError, match="missing"):
        Report.from_dict({k: v for k, v in data.items() if k not in (key, "method")})


def test_only_pruned_models_have_a_report() -> None:
    with pytest.raises(FxpruneError, match=r"that fxprune.compile or fxprune.load returned, got Linear"):
        report(nn.Linear(2, 2))

"""Fidelity as data and words: the scale, what is said of the data, and what is advised."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from fxprune._base.errors import PlanError
from fxprune.results.fidelity import SCALE, Fidelity
from fxprune.results.record import Report
from tests.support.reports import make_report

FIGURES: dict[str, Any] = {
    "explained": 0.4,
    "error": 0.7,
    "agreement": 0.484,
    "deviation": 0.031,
    "divergence": 0.8,
    "samples": 256,
    "batches": 4,
    "data": "held out",
    "advice": ("more calibration data", "recover='sequential'", "fine-tune", "a larger budget"),
}


@pytest.mark.parametrize(
    ("found", "level"),
    [
        ({"agreement": 0.95}, "good"),
        ({"agreement": 0.949}, "fair"),
        ({"agreement": 0.80}, "fair"),
        ({"agreement": 0.799, "explained": 1.0}, "poor"),
        ({"agreement": 0.0}, "poor"),
        ({"explained": 0.98}, "good"),
        ({"explained": 0.979}, "fair"),
        ({"explained": 0.80}, "fair"),
        ({"explained": -3.0}, "poor"),
        ({"explained": None}, "unknown"),
        ({"perplexity": (10.0, 10.5), "agreement": 0.1}, "good"),
        ({"perplexity": (10.0, 10.51)}, "fair"),
        ({"perplexity": (10.0, 12.51), "agreement": 1.0}, "poor"),
        ({"perplexity": (10.0, math.inf)}, "poor"),
        ({"perplexity": (10.0, math.nan)}, "poor"),
        ({"error": math.nan, "agreement": 1.0}, "poor"),
        ({"error": None}, "unknown"),
        ({"agreement": 1.0, "why": "not comparable: boxes"}, "unknown"),
    ],
)
def test_the_scale(found: dict[str, Any], level: str) -> None:
    one = Fidelity(**{"error": 0.1, **found})
    assert one.level == level and (level == "unknown" or str(one).startswith(f"{level}: "))


def test_the_scale_is_a_table_of_two_bounds_each() -> None:
    assert SCALE == {"perplexity": (1.05, 1.25), "agreement": (0.95, 0.80), "explained": (0.98, 0.80)}


def test_what_is_said() -> None:
    assert str(Fidelity(**FIGURES)) == (
        "poor: agrees with the dense model on 48.4 % of 256 samples (+- 3.1) held out from recovery: more calibration data, "
        "recover='sequential', fine-tune, or a larger budget"
    )
    one = Fidelity(**{**FIGURES, "data": "alone", "agreement": 0.99})
    assert str(one) == (
        "good: agrees with the dense model on 99 % of 256 samples (+- 3.1) on the calibration batch itself; give several for a figure "
        "on data that recovery has not seen"
    )
    assert not one.held_out and Fidelity(**FIGURES).held_out and Fidelity(**{**FIGURES, "data": "unfitted"}).held_out
    model = Fidelity(**{**FIGURES, "perplexity": (12.0, 40.0), "samples": 1, "advice": ("fine-tune",)})
    assert str(model) == "poor: perplexity 12 -> 40 (3.33 x) on 1 sample held out from recovery: fine-tune"
    values = Fidelity(**{**FIGURES, "agreement": None})
    assert "poor: explains 40 % of the variance of the dense outputs, on 256 samples held out" in str(values)
    assert "the dense outputs do not vary, relative error 0.7" in str(Fidelity(error=0.7, samples=3))
    assert "not finite where the dense model's are" in str(Fidelity(error=math.nan))
    assert str(Fidelity(why="not measured: no values")) == "not measured: no values"


def test_it_stands_beside_the_seal() -> None:
    found = make_report(fidelity=Fidelity(**FIGURES))
    *_, seal, line, figures = str(found).splitlines()
    assert seal.startswith("verified: the rewriting is exact: ") and line == f"fidelity: {found.fidelity}"
    assert figures.split() == [
        "agreement",
        "48.4",
        "%,",
        "explained",
        "variance",
        "0.4000,",
        "relative",
        "error",
        "0.7,",
        "divergence",
        "0.8",
        "nats",
    ]
    assert "fidelity: poor: agrees" in repr(found) and "recover='sequential', fine-tune, or a larger budget" in repr(
        found
    )
    html = found._repr_html_()
    assert "poor: agrees with the dense model on 48.4 %" in html and "<div>fidelity: " in html
    assert "fidelity" not in str(make_report()) + repr(make_report()) + make_report()._repr_html_()


@pytest.mark.parametrize(
    "found",
    [
        Fidelity(**FIGURES),
        Fidelity(why="not measured: x"),
        Fidelity(error=0.5, perplexity=(2.0, math.inf), divergence=math.inf),
    ],
)
def test_it_is_kept_with_the_report(found: Fidelity) -> None:
    data = json.loads(json.dumps(make_report(fidelity=found).to_dict(), allow_nan=False))
    assert Report.from_dict(data).fidelity == found and data["fidelity"]["level"] == found.level


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agreement": "much"}, "fidelity: agreement: expected a number"),
        ({"perplexity": [1.0]}, "fidelity: perplexity: expected 2 entries"),
        ({"data": "mine"}, "fidelity: data: expected one of"),
        ({"samples": -1}, "fidelity: samples: expected a whole number from 0"),
        ({"more": 1}, "fidelity: unknown entries"),
    ],
)
def test_damaged_data(changes: dict[str, Any], message: str) -> None:
    data = make_report(fidelity=Fidelity(**FIGURES)).to_dict()
    with pytest.raises(PlanError, match=message):
        Report.from_dict({**data, "fidelity": {**data["fidelity"], **changes}})

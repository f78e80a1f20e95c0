"""The report: what is printed, and the same as data."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxprune
from fxprune._base.errors import FxpruneError, PlanError
from fxprune.reporting.distribution import _edges
from fxprune.results.attached import report
from fxprune.results.record import FrozenRow, GroupRow, LayerRow, Report
from fxprune.results.scores import GroupScores, ScoreSummary
from fxprune.results.tables import ROWS
from tests.models.small import NETWORKS


def make_report(**changes: Any) -> Report:
    values: dict[str, Any] = {
        "params": (1_234_567, 600_000),
        "macs": (2_000_000, 1_000_000),
        "bytes": (4_938_268, 2_400_000),
        "method": "variance",
        "groups": (
            GroupRow("conv1", "channel", ("conv1", "bn1", "layer1.0.conv2"), 64, 48),
            GroupRow("attention:head", "head", ("attention",), 12, 12),
        ),
        "units_removed": 16,
        "verified": True,
        "max_error": 3.25e-6,
        "tolerance": 1e-4,
        "dtype": "float32",
        "frozen": (
            FrozenRow("fc.weight", 0, 10, "the result"),
            FrozenRow("fc.bias", 0, 10, "the result"),
            FrozenRow("conv1.weight", 1, 3, "an input"),
        ),
        "collapsed": ("layer4.1",),
        "dropped": 5000,
        "skipped": ("conv1.weight: no bias takes its shift",),
        "seconds": {"capture": 1.5, "couple": 0.25},
        "notes": ("a note",),
    }
    return Report(**{**values, **changes})


def test_the_printed_form() -> None:
    assert (
        str(make_report())
        == """\
fxprune: variance
                    before      after    kept    smaller
---------------  ---------  ---------  ------  ---------
parameters       1,234,567    600,000  48.6 %     2.06 x
MACs per sample  2,000,000  1,000,000  50.0 %     2.00 x
bytes            4,938,268  2,400,000  48.6 %     2.06 x

groups: 2, of which 1 lose units
group           kind     layers           before    after     kept
--------------  -------  -------------  --------  -------  -------
conv1           channel  conv1, bn1 +1        64       48   75.0 %
attention:head  head     attention            12       12  100.0 %

frozen, and why
reason        coordinates    axes  such as
----------  -------------  ------  -----------------------
the result             20       2  fc.weight[0], fc.bias[0]
an input                3       1  conv1.weight[1]

collapsed: layer4.1
dropped: 5,000 parameters of the original that its forward never reaches
skipped: conv1.weight: no bias takes its shift
note: a note
seconds: capture 1.50, couple 0.25; 1.75 in all

verified: equal to the masked twin, relative error 3.2e-06 (tolerance 1e-04, float32)""".replace(
            "-----------------------\n", "------------------------\n"
        )
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"verified": None}, "not verified: the comparison could not tell; see the notes"),
        ({"verified": None, "max_error": None, "dtype": ""}, "not verified: not compared"),
        ({"verified": False}, "WRONG: differs from the masked twin, relative error 3.2e-06"),
        ({"max_error": None, "tolerance": None}, "verified: equal to the masked twin, relative error unknown"),
    ],
)
def test_the_certificate_line(changes: dict[str, Any], line: str) -> None:
    assert str(make_report(**changes)).splitlines()[-1].startswith(line)


def test_long_tables_lose_their_middle() -> None:
    rows = tuple(GroupRow(f"g{i}", "channel", ("a",), 4, 2) for i in range(100))
    lines = [line.split()[0] for line in str(make_report(groups=rows, frozen=(), seconds={})).splitlines() if line]
    names = [line for line in lines if line.startswith(("g", "...")) and not line.startswith("group")]
    half = ROWS // 2
    assert names == [f"g{i}" for i in range(half)] + ["..."] + [f"g{i}" for i in range(100 - half, 100)]
    assert f"... {100 - ROWS} more ..." in str(make_report(groups=rows))


def test_an_empty_report_prints() -> None:
    text = str(Report(params=(0, 0), macs=(0, 0), bytes=(0, 0), method="random"))
    assert "groups" not in text and "frozen" not in text and text.count("-\n") >= 1


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
    for key in ("layers", "scores", "latency", "doubt"):
        data.pop(key, None)
    assert Report.from_dict(data) == found
    assert found.groups[0].producers == found.groups[0].layers and found.groups[0].consumers == ()


@pytest.mark.parametrize("schema", [4, 1000])
def test_newer_formats_are_refused(schema: int) -> None:
    data = make_report().to_dict() | {"schema": schema, "surprise": 1}
    with pytest.raises(PlanError, match=f"format {schema} is not one that this fxprune reads .*upgrade"):
        Report.from_dict(data)


def test_a_format_that_is_none() -> None:
    with pytest.raises(PlanError, match="schema: expected one of 1, 2, 3, got 0"):
        Report.from_dict(make_report().to_dict() | {"schema": 0})


def a_summary(**changes: Any) -> ScoreSummary:
    values: dict[str, Any] = {
        "unit": "score per parameter",
        "edges": (1e-6, 1e-5, 1e-4),
        "log": True,
        "cut": 1.5e-5,
        "astray": (1, 0),
        "groups": (GroupScores("conv1", (1, 47), (16, 0)), GroupScores("attention:head", (0, 12), (0, 0))),
    }
    return ScoreSummary(**{**values, **changes})


def test_scores_and_layers_through_json() -> None:
    rows = (GroupRow("conv1", "channel", ("conv1", "bn1", "fc"), 64, 48, 2),)
    layers = (LayerRow("conv1", (640, 480), (10**9, 7 * 10**8)),)
    for scores in (a_summary(), a_summary(cut=None, groups=(GroupScores("conv1", (1, 47), (16, 0), 2e-5),))):
        found = make_report(groups=rows, layers=layers, scores=scores)
        text = json.dumps(found.to_dict(), allow_nan=False)
        assert Report.from_dict(json.loads(text)) == found
    assert rows[0].producers == ("conv1", "bn1") and rows[0].consumers == ("fc",)
    assert a_summary().kept == (1, 59) and a_summary().removed == (16, 0)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("edges", [2, 1], "edges: expected at least 2 ascending"),
        ("edges", [1], "edges: expected at least 2 ascending"),
        ("edges", [0, 1], "edges: expected positive numbers"),
        ("edges", [-1, 1], "edges: expected positive numbers"),
        ("cut", "low", "cut: expected a number"),
        ("astray", [1], "astray: expected 2 entries"),
        ("groups", [["a", None, "1 2 3", ""]], r"groups\[0\]: expected at most 2 counts"),
        ("groups", [["a", None, "-1", ""]], r"groups\[0\]: expected at most 2 counts"),
        ("groups", [["a", None, "1"]], r"groups\[0\]: expected 4 entries"),
    ],
)
def test_damaged_scores(key: str, value: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        ScoreSummary.from_dict(a_summary().to_dict() | {key: value}, "scores")


@pytest.mark.parametrize(
    "values",
    [
        [1, 1, 1 + 2.3e-16], [1e17, 1e17], [-1e17, -1e17], [0, 0, 0, 1, 1 + 2.3e-16], [0, 0], [0, 0, 0, 5], [5e-324, 1e-322],
        [1e-30, 2e-30], [1e9, 1e9 + 2], [1, 2, 3], [1e-300, 1, 1e300],
    ],
)  # fmt: skip
def test_bins_ascend_though_scores_are_equal_but_for_rounding(values: list[float]) -> None:
    edges, log = _edges(np.array(values))
    found = a_summary(edges=tuple(edges.tolist()), log=log, groups=())
    assert ScoreSummary.from_dict(json.loads(json.dumps(found.to_dict())), "scores") == found


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


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.head, self.aside = nn.Linear(8, 5), nn.Linear(7, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def test_the_report_of_a_compilation() -> None:
    torch.manual_seed(0)
    model = Net()
    pruned = fxprune.compile(model, [torch.randn(8, 3, 6, 6)], 0.5, recover=None, progress=False)
    found = fxprune.report(pruned)
    used = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("aside"))
    assert found.params == (used, sum(p.numel() for p in pruned.parameters()))
    assert found.params[1] <= used / 2 and found.dropped == 56 and found.verified is True
    assert [(row.name, row.kind, row.before) for row in found.groups] == [("conv", "channel", 8)]
    assert found.units_removed == 8 - found.groups[0].after == 8 - pruned.conv.out_channels
    assert {(row.tensor, row.axis, row.coordinates) for row in found.frozen} == {
        ("conv.weight", 1, 3), ("head.weight", 0, 5), ("head.bias", 0, 5),
    }  # fmt: skip
    assert found.plan is not None and found.plan.budget == {"params": 0.5}
    assert Report.from_dict(found.to_dict(), plan=found.plan) == found
    assert dataclasses.replace(found, plan=None) != found


def test_an_explanation_as_data_has_the_details() -> None:
    found = fxprune.explain(Net(), [torch.randn(8, 3, 6, 6)], layers="conv")
    data = json.loads(json.dumps(found.to_dict()))
    assert data["details"] == found.details == str(found) and "conv.weight" in found.details
    assert [group["name"] for group in data["groups"]] == ["conv"]


def test_what_was_not_verified_says_so() -> None:
    pruned = fxprune.compile(Net(), [torch.randn(8, 3, 6, 6)], 0.5, recover=None, verify=False, progress=False)
    found = fxprune.report(pruned)
    assert found.verified is None and str(found).endswith("not verified: not compared")


@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize("options", [{}, {"units": ("channel", "head", "block"), "min_keep": 0}])
def test_layers_add_up_to_the_whole(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    build, example = NETWORKS[name]
    pruned = fxprune.compile(build().double(), [example()], 0.4, recover=None, verify=False, progress=False, **options)
    found = fxprune.report(pruned)
    for whole, parts in ((found.params, "params"), (found.macs, "macs")):
        changes = [getattr(row, parts) for row in found.layers]
        assert whole == (sum(c[0] for c in changes), sum(c[1] for c in changes))
    own = {n: sum(p.numel() for p in m.parameters(recurse=False)) for n, m in pruned.named_modules()}
    left = {row.name: row.params[1] for row in found.layers if row.params[1]}
    assert {name: count for name, count in own.items() if count} == left or name == "transformer"  # tied


def test_the_summary_counts_every_unit_and_finds_the_cut() -> None:
    torch.manual_seed(0)
    build, example = NETWORKS["residual"]
    pruned = fxprune.compile(build().double(), [example()], 0.5, method="l1", recover=None, progress=False)
    found = fxprune.report(pruned)
    scores = found.scores
    assert scores is not None and scores.unit == "score per parameter" and scores.cut is not None
    assert scores.edges[0] <= scores.cut <= scores.edges[-1] and len(scores.edges) == len(scores.kept) + 1
    counts = {group.name: (sum(group.kept), sum(group.removed)) for group in scores.groups}
    assert counts == {row.name: (row.after, row.before - row.after) for row in found.groups}
    spans = list(pairwise(scores.edges))
    below = sum(n for (_, high), n in zip(spans, scores.kept, strict=True) if high <= scores.cut)
    above = sum(n for (low, _), n in zip(spans, scores.removed, strict=True) if low > scores.cut)
    assert below <= scores.astray[0] and above <= scores.astray[1]
    assert sum(scores.astray) < min(sum(scores.removed), sum(scores.kept)) / 2


def test_under_ratios_every_group_has_its_own_cut() -> None:
    torch.manual_seed(0)
    build, example = NETWORKS["residual"]
    pruned = fxprune.compile(
        build().double(), [example()], ratios=0.5, ignore=["stem*"], method="l1", recover=None, progress=False
    )
    scores = fxprune.report(pruned).scores
    assert scores is not None and scores.cut is None and scores.unit == "score"
    assert scores.groups and all("stem" not in group.name for group in scores.groups)
    assert all((group.cut is not None) == any(group.removed) for group in scores.groups)

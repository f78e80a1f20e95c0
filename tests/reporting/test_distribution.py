"""How scores are distributed: every unit is counted, and the cut is where it was made."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

import fxprune
from fxprune._base.errors import PlanError
from fxprune.reporting.distribution import _edges
from fxprune.results.record import GroupRow, LayerRow, Report
from fxprune.results.scores import GroupScores, ScoreSummary
from tests.models.small import NETWORKS
from tests.support.reports import a_summary, make_report


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
        [1, 1, 1 + 2.3e-16],
        [1e17, 1e17],
        [-1e17, -1e17],
        [0, 0, 0, 1, 1 + 2.3e-16],
        [0, 0],
        [0, 0, 0, 5],
        [5e-324, 1e-322],
        [1e-30, 2e-30],
        [1e9, 1e9 + 2],
        [1, 2, 3],
        [1e-300, 1, 1e300],
    ],
)
def test_bins_ascend_though_scores_are_equal_but_for_rounding(values: list[float]) -> None:
    edges, log = _edges(np.array(values))
    found = a_summary(edges=tuple(edges.tolist()), log=log, groups=())
    assert ScoreSummary.from_dict(json.loads(json.dumps(found.to_dict())), "scores") == found


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

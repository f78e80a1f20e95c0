"""Sweeps: every point is what compile gives, shared work is done once, and the table tells."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import Budget, BudgetError, CalibrationError, ScorerError
from fxprune.budget.cost import Cost
from fxprune.compiler import stages
from fxprune.scoring.scorer import scorer_of
from tests.models.parts import Uncapturable
from tests.support.sweeps import DATA, model, quality, small_sweep


class Counting:
    """The scorer ``l1``, which counts how often it is asked."""

    name, needs, per_cost = "counting", ("weights",), True

    def __init__(self) -> None:
        self.defaults: dict[str, Any] = {}
        self.asked = 0

    def score(self, context: Any) -> Any:
        self.asked += 1
        return scorer_of("l1").score(context)


@pytest.mark.slow
def test_every_point_is_what_compile_gives() -> None:
    found = small_sweep()
    assert [(p.method, p.budget) for p in found.points] == [
        (m, b) for m in ("l1", "random") for b in (Budget(params=0.7), Budget(macs=0.5), Budget(params=0.005))
    ]
    for point in found.points[:2]:
        pruned = fxprune.compile(model(), DATA, point.budget, method="l1", progress=False)
        report = fxprune.report(pruned)
        assert point.cost == Cost(report.params[1], report.macs[1], report.bytes[1])
        assert point.report is not None and report.plan is not None and point.report.plan is not None
        assert point.report.plan.keep == report.plan.keep
        assert point.value == pytest.approx(quality(pruned), rel=1e-9) and point.verified is True
        assert found.before == Cost(report.params[0], report.macs[0], report.bytes[0])
    assert found.dense_value == 0.0 and found.quality_name == "value"


@pytest.mark.slow
def test_capture_couple_and_score_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(name: str, original: Any) -> Any:
        return lambda *args, **kwargs: (calls.append(name), original(*args, **kwargs))[1]

    for name in ("capture_or_parts", "couple_graph"):
        monkeypatch.setattr(stages, name, counted(name, getattr(stages, name)))
    scorers = [Counting(), Counting()]
    found = fxprune.sweep(model(), DATA, [0.8, 0.6, 0.4], scorers, recover=None, verify=False, progress=False)
    assert calls == ["capture_or_parts", "couple_graph"] and [s.asked for s in scorers] == [1, 1]
    assert len(found.points) == 6 and all(p.cost is not None for p in found.points)


@pytest.mark.slow
def test_a_budget_out_of_reach_is_a_row_that_says_so() -> None:
    found = small_sweep()
    point = found.points[2]
    assert point.cost is None and point.quality is None and "cannot be reached: the smallest is" in point.why
    text = str(found)
    assert "no model" in text and f"l1, 0.5 % parameters: {point.why}" in text
    assert point not in found.pareto
    alone = fxprune.sweep(model(), DATA, [0.005], ["l1"], progress=False)
    assert alone.points[0].why == point.why and alone.pareto == ()
    with pytest.raises(BudgetError, match="no point lies within these bounds; no point has a model"):
        alone.best(params=1.0)


def test_a_method_that_does_not_take_the_model_is_a_row_and_loses_no_other() -> None:
    found = fxprune.sweep(model(), DATA, [0.8, 0.7], ["l1", "vbp"], recover=None, progress=False)
    assert [point.report is not None for point in found.points] == [True, True, False, False]
    assert all("expects hidden units of an MLP" in point.why for point in found.points[2:])
    with pytest.raises(fxprune.NothingToPruneError, match="expects hidden units of an MLP"):
        fxprune.sweep(model(), DATA, [0.8], ["vbp"], progress=False)


def test_the_table_and_the_data() -> None:
    found = small_sweep()
    lines = str(found).splitlines()
    assert lines[0].startswith(
        f"fxprune: 6 points, {found.before.params:,} parameters, {found.before.macs:,} MACs dense"
    )
    heads = lines[1].split()
    assert heads[:3] == ["method", "budget", "parameters"] and {"ms", "value", "fidelity", "agreement"} <= set(heads)
    assert len([line for line in lines if line.startswith(("l1  ", "random  "))]) == 6
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["before"]["params"] == found.before.params and len(data["points"]) == 6
    assert [p["pareto"] for p in data["points"]] == [p in found.pareto for p in found.points]
    assert data["points"][1]["budget"]["macs"] == 0.5 and data["points"][2]["cost"] is None
    assert all(p["latency_ms"] > 0 for p in data["points"] if p["cost"])


@pytest.mark.slow
def test_the_page(tmp_path: Path) -> None:
    found = small_sweep()
    found.write(tmp_path / "sweep.html")
    text = (tmp_path / "sweep.html").read_text(encoding="utf-8")
    assert text == found.to_html() and "http" not in text.replace("http-equiv", "")
    for point in found.points:
        if point.cost is not None:
            assert f"{point.cost.params:,}" in text and f"{point.value:.4f}" in text
    for title in ("Value against parameters", "Value against MACs per sample", "Value against milliseconds a call"):
        assert title in text
    assert "no model" in text and "cannot be reached" in text


def test_points_have_the_fidelity_of_their_reports() -> None:
    data = [DATA[0], DATA[0].flip(0) * 0.9, DATA[0] * 0.7]
    plain = Counting()  # whose own choice is to recover nothing: the others' held-out batches are judged all the same
    plain.defaults = {"recover": None}
    found = fxprune.sweep(model(), data, [0.6], [plain, "random", "l1"], progress=False)
    assert [point.report.fidelity.data for point in found.points] == ["unfitted", "held out", "held out"]
    for point in found.points[1:]:
        alone = fxprune.report(fxprune.compile(model(), data, 0.6, method=point.method, progress=False)).fidelity
        assert alone is not None and alone == point.report.fidelity and point.fidelity == alone.explained


def test_without_evaluate_points_are_compared_by_fidelity() -> None:
    found = fxprune.sweep(model(), DATA, [0.9, 0.3], "l1", progress=False)
    high, low = found.points
    assert high.fidelity is not None and low.fidelity is not None and 1 > high.fidelity > low.fidelity
    assert high.value is None and high.quality == high.fidelity and found.quality_name == "fidelity"
    assert high.agreement is not None and 0 <= high.agreement <= 1
    assert " ms" not in str(found).splitlines()[1] and "value" not in str(found)
    with pytest.raises(BudgetError, match="expected a sweep with latency=True"):
        found.best(latency_ms=1.0)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"budgets": []}, BudgetError, "budgets: expected at least one"),
        ({"budgets": [0.5, 1.5]}, BudgetError, r"budget must lie in \(0, 1\]"),
        ({"methods": []}, ScorerError, "methods: expected at least one"),
        ({"methods": ["l1", "nonsense"]}, ScorerError, "unknown method 'nonsense'"),
        ({"evaluate": 3}, TypeError, "evaluate: expected a function of a model, got 3"),
        ({"evaluate": lambda _: "good"}, TypeError, "evaluate: expected a number .*, got 'good'"),
        ({"calib_data": []}, CalibrationError, "it is empty"),
        ({"recover": "magic"}, ValueError, "recover must be one of"),
        ({"round_to": 0}, ValueError, "round_to must be an int of at least 1"),
    ],
)
def test_bad_arguments_are_told_before_any_work(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"calib_data": DATA, "budgets": [0.5], "methods": ["l1"], "progress": False} | changes
    with pytest.raises(error, match=message):
        fxprune.sweep(model(), **arguments)


@pytest.mark.slow
def test_the_model_stays_as_it_is_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    dense = model().train()
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    fxprune.sweep(dense, DATA, [0.5], "l1", latency=True)
    assert dense.training and all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    assert capfd.readouterr() == ("", "")


def test_evaluate_gets_evaluation_mode_and_may_change_it() -> None:
    dense, seen = model().train(), []

    def evaluate(module: nn.Module) -> float:
        seen.append(any(m.training for m in module.modules()))
        module.train(not module.training)
        return 1.0

    fxprune.sweep(dense, DATA, [0.5], "l1", evaluate=evaluate, recover=None, verify=False, progress=False)
    assert seen == [False, False] and all(m.training for m in dense.modules())


def test_a_model_on_which_evaluate_fails_is_a_point_that_says_so() -> None:
    calls: list[nn.Module] = []

    def evaluate(module: nn.Module) -> float:
        calls.append(module)
        if len(calls) == 2:
            raise RuntimeError("no memory")
        return 0.5

    found = fxprune.sweep(model(), DATA, [0.9, 0.7], "l1", evaluate=evaluate, recover=None, progress=False)
    first, second = found.points
    assert first.report is not None and math.isnan(first.value or 0) and "RuntimeError: no memory" in first.why
    assert second.value == 0.5 and not second.why and found.pareto == (second,) == (found.best(),)
    assert "no value" in str(found) and "evaluate fails on the model: RuntimeError: no memory" in str(found)


@pytest.mark.slow
def test_blocks_go_in_a_sweep_too() -> None:
    found = fxprune.sweep(
        model(), DATA, [0.5], "l1", units=("channel", "block"), min_keep=0, recover=None, progress=False
    )
    pruned = fxprune.compile(
        model(), DATA, 0.5, method="l1", units=("channel", "block"), min_keep=0, recover=None, progress=False
    )
    point = found.points[0]
    assert point.cost is not None and point.cost.params == fxprune.report(pruned).params[1]


@pytest.mark.slow
def test_a_model_in_parts() -> None:
    torch.manual_seed(0)
    found = fxprune.sweep(Uncapturable(), DATA, [0.6, 0.005], "l1", progress=False)
    good, bad = found.points
    assert good.cost is not None and good.cost.params <= 0.6 * found.before.params and good.fidelity is not None
    assert "cannot be reached" in bad.why
    with pytest.raises(BudgetError, match="none of the 1 points has a model"):
        fxprune.sweep(Uncapturable(), DATA, [0.005], "l1", progress=False)


@pytest.mark.slow
def test_a_model_whose_outputs_depend_on_the_data_in_size() -> None:
    class Detector(Uncapturable):
        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x)
            return y[y > float(y.mean())]

    torch.manual_seed(0)
    (point,) = fxprune.sweep(
        Detector(), DATA, [0.4], "random", evaluate=lambda _: 2.0, recover=None, progress=False
    ).points
    assert point.value == 2.0 and point.fidelity is not None and math.isnan(point.fidelity)
    assert point.agreement is None

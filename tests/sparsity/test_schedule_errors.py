"""What a schedule cannot work with is said at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune._base.errors import BudgetError, NothingToPruneError, PlanError, ScorerError
from tests.support.schedules import attending, convolutional, images, schedule_of


@pytest.mark.parametrize(
    "given, error, text",
    [
        ({"steps": 0}, ValueError, "steps must be an int of at least 1, got 0"),
        ({"every": 1.5}, ValueError, "every must be an int"),
        ({"shape": "square"}, ValueError, "shape must be among cubic, linear, one_cycle, got 'square'"),
        ({"sparsity": "lasso"}, ValueError, "among group_lasso, growing, bn_scale, got 'lasso'"),
        ({"strength": 1.0}, ValueError, "give sparsity="),
        ({"sparsity": "growing", "strength": -1}, ValueError, "strength must be positive"),
        ({"sparsity": "growing", "strength": "much"}, TypeError, "strength: expected a number, got 'much'"),
        ({"recover": "covariance"}, TypeError, "no 'recover': training recovers"),
        ({"colour": 1}, TypeError, "no 'colour'; the options that it takes: method"),
        ({"units": "block"}, ValueError, "no 'block'"),
        ({"min_keep": 0}, ValueError, "min_keep=0"),
        ({"allocation": "search"}, ValueError, "allocation='search'"),
        ({"method": "taylor"}, ScorerError, "needs gradients"),
        ({"method": "nobody"}, ScorerError, "unknown method 'nobody'"),
        ({"budget": fxprune.Budget(latency=0.5)}, BudgetError, "expected a budget of params or macs"),
        ({"budget": 0.001}, BudgetError, "smallest"),
        ({"budget": None}, BudgetError, "give either a budget"),
    ],
)
def test_malformed_arguments(given: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        schedule_of(convolutional(), images(), **given)


def test_what_is_no_model() -> None:
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module"):
        schedule_of("resnet", images())  # type: ignore[arg-type]


def test_a_learning_rate_that_is_none() -> None:
    schedule = schedule_of(convolutional(), images())
    with pytest.raises(ValueError, match="lr: expected a learning rate of at least 0, got -1"):
        schedule.step(-1)
    for rate in (True, "0.1", float("nan"), torch.ones(2)):
        with pytest.raises(ValueError, match="lr: expected a learning rate"):
            schedule.step(rate)  # type: ignore[arg-type]
    assert schedule.count == 0
    schedule.step(torch.tensor(0.1))  # as of an optimizer that is captured
    assert schedule.count == 1


def test_finish_without_steps() -> None:
    with pytest.raises(NothingToPruneError, match=r"call step\(\) after each step of the optimizer"):
        schedule_of(convolutional(), images()).finish()


def test_finish_early_says_so() -> None:
    model, data = convolutional(), images()
    schedule = schedule_of(model, data)
    for _ in range(6):
        schedule.step()
    notes = schedule.finish().report.notes
    assert "the schedule was finished after 6 of 10 steps, short of its budget" in notes


def test_another_model() -> None:
    schedule = schedule_of(convolutional(), images())
    with pytest.raises(PlanError, match="not the one that the schedule is for"):
        schedule.finish(attending())
    with pytest.raises(PlanError, match=r"0\.bias: expected nothing"):
        schedule.hold(nn.Sequential(nn.Linear(2, 2)))


def test_weights_that_are_not_finite() -> None:
    model, data = convolutional(), images()
    schedule = schedule_of(model, data, every=1)
    with torch.no_grad():
        model[3].conv1.weight[0] = float("nan")
    with pytest.raises(ScorerError, match="not finite"):
        schedule.step()

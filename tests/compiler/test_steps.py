"""Compilation in steps: one plan, one report, one certificate for the whole way."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import fxprune
from fxprune.budget.budget import Budget
from fxprune.budget.cost import Cost
from fxprune.compiler.steps import schedule
from tests.models.small import classifier
from tests.support.marks import sampled
from tests.support.weights import fingerprint, randomise


def _model() -> tuple[nn.Module, Tensor]:
    x = torch.randn((6, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    return randomise(torchvision.models.resnet18(num_classes=5).eval(), 0, (x,)), x


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, Tensor]:
    return classifier(12, 16, 24), torch.randn(8, 3, 12, 12)


@pytest.mark.parametrize(
    ("budget", "recover"),
    sampled(list(product([0.4, Budget(macs=0.5), Budget(params=900)], [None, "covariance", "sequential"])), 4),
)
@pytest.mark.slow
def test_the_whole_way_has_one_report(network: Any, recover: str | None, budget: Any) -> None:
    model, x = network
    before = fingerprint(model)
    pruned = fxprune.compile(model, [x], budget, steps=3, recover=recover, dynamic_shapes={}, progress=False)
    report = fxprune.report(pruned)
    assert fingerprint(model) == before
    assert report.verified is True and report.max_error < 1e-9
    assert report.params == (sum(p.numel() for p in model.parameters()), sum(p.numel() for p in pruned.parameters()))
    bound = budget if isinstance(budget, Budget) else Budget(params=budget)
    limits = bound.limits(Cost(report.params[0], report.macs[0], report.bytes[0]))
    assert all((report.params[1], report.macs[1])[i] <= limit for i, limit in limits.items())
    again = fxprune.apply(model, report.plan)
    shapes = {k: v.shape for k, v in pruned.state_dict().items()}
    assert {k: v.shape for k, v in again.state_dict().items()} == shapes
    if recover is None:
        torch.testing.assert_close(again(x), pruned(x))


@pytest.mark.slow
def test_every_step_scores_what_the_one_before_left(network: Any) -> None:
    model, x = network
    seen = []

    class Watching:
        name, needs, per_cost, defaults = "watching", ("weights",), True, {"recover": None}

        def score(self, context: fxprune.Context) -> dict[str, Tensor]:
            seen.append(sum(len(g.units) for g in context.coupling.groups))
            return {g.name: torch.rand(len(g.units)) for g in context.coupling.groups}

    fxprune.compile(model, [x], 0.3, method=Watching(), steps=4, progress=False)
    assert len(seen) == 4
    assert all(a > b for a, b in pairwise(seen))


def test_bounds_fall_by_the_same_share() -> None:
    before = Cost(1000, 10**6, 4000)
    bounds = [schedule(Budget(params=0.125, macs=800_000), before, i / 3) for i in (1, 2, 3)]
    assert [b.params for b in bounds] == [500, 250, 125]
    assert [b.macs for b in bounds] == [928317, 861773, 800000]


@pytest.mark.slow
def test_branches_may_vanish_on_the_way() -> None:
    model, x = _model()
    pruned = fxprune.compile(model, [x], 0.05, steps=2, min_keep=0, recover=None, method="l2", progress=False)
    report = fxprune.report(pruned)
    assert report.params[1] == sum(p.numel() for p in pruned.parameters()) <= 0.05 * report.params[0]
    assert pruned(x).shape == (6, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0.5, "steps": 0}, "steps must be an int"),
        ({"budget": 0.5, "steps": True}, "steps must be an int"),
        ({"ratios": 0.5, "steps": 2}, "steps needs a budget"),
        ({"budget": 0.5, "steps": 2, "recover": "reinit"}, "nothing to score"),
    ],
)
def test_malformed_steps_are_refused(network: Any, options: dict[str, Any], message: str) -> None:
    model, x = network
    with pytest.raises(ValueError, match=message):
        fxprune.compile(model, [x], progress=False, **options)


def test_a_weight_that_the_class_computes_does_not_round_the_proof() -> None:
    """Its class computes the weight in float32 where the graph has it plain: each step is proven by its graph."""
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4)),
        torch.randn(16, 8),
    )
    nn.utils.parametrizations.weight_norm(model[2])
    options: dict[str, Any] = {"method": "l1", "recover": None, "steps": 2, "form": "module"}
    pruned = fxprune.compile(model.eval(), [x], 0.6, progress=False, **options)
    assert pruned.report.verified

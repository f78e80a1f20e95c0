"""Bounds on the latency are met: measured, predicted, and met again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune._base.errors import BudgetError
from fxprune.budget.budget import Budget
from fxprune.budget.cost import Cost
from fxprune.compiler.steps import schedule
from fxprune.runtimes.setting import Setting
from tests.support.latency import Fake
from tests.support.marks import but_slow
from tests.support.pruning import coupling_of, random_scores

# -- budgets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", but_slow([0.9, 0.6, 0.35], quick=(0.6,)))
def test_a_share_of_the_latency_is_met(network: Any, clock: list[Fake], share: float) -> None:
    model, x = network
    pruned = fxprune.compile(model, [x], Budget(latency=share, batch_size=2, threads=1), round_to=1, progress=False)
    found = fxprune.report(pruned).latency
    (fake,) = clock
    assert found.dense_ms == pytest.approx(fake.time(model)) and found.measured_ms == pytest.approx(fake.time(pruned))
    assert found.limit_ms == pytest.approx(share * found.dense_ms)
    assert found.met and found.measured_ms >= 0.85 * found.limit_ms
    assert abs(found.predicted_ms / found.measured_ms - 1) < 0.15
    assert (found.backend, found.batch_size, found.device, found.threads) == ("eager", 2, "cpu", 1)
    assert "met; eager, batch 2, cpu, 1 thread" in str(fxprune.report(pruned))
    assert fxprune.report(pruned).verified and fxprune.report(pruned).plan.budget == {"latency": share}


def test_the_histogram_shows_what_units_were_ranked_by(network: Any, clock: list[Fake]) -> None:
    model, x = network
    pruned = fxprune.compile(model, [x], Budget(latency=0.5, batch_size=2), method="l1", round_to=1, progress=False)
    scores = fxprune.report(pruned).scores
    assert scores.unit == "score per millisecond" and scores.cut is not None
    assert sum(scores.removed) > 10 and scores.astray == (0, 0)


def test_milliseconds_and_other_bounds_hold_together(network: Any, clock: list[Fake]) -> None:
    model, x = network
    budget = Budget(params=0.5, latency_ms=2.0, batch_size=2)
    pruned = fxprune.compile(model, [x], budget, method="l1", progress=False)
    found = fxprune.report(pruned)
    assert found.latency.limit_ms == 2.0 and found.latency.met
    assert found.params[1] <= 0.5 * found.params[0]
    assert found.plan.budget == {"params": 0.5, "latency_ms": 2.0}
    loose = fxprune.compile(model, [x], Budget(params=0.5, latency=1.0), method="l1", progress=False)
    assert fxprune.report(loose).params[1] <= 0.5 * found.params[0]


def test_a_latency_that_cannot_be_reached_says_what_can(network: Any, clock: list[Fake]) -> None:
    model, x = network
    with pytest.raises(
        BudgetError, match=r"a latency of 0\.1 ms .* cannot be reached: the smallest is predicted to take 0\.3"
    ):
        fxprune.compile(model, [x], Budget(latency_ms=0.1), progress=False)


def test_what_the_original_meets_costs_nothing(network: Any, clock: list[Fake]) -> None:
    model, x = network
    found = fxprune.report(fxprune.compile(model, [x], Budget(latency=1.0), progress=False))
    assert found.units_removed == 0 and found.params[0] == found.params[1] and found.latency.met


def test_a_limit_just_above_the_smallest_model_is_met(network: Any, clock: list[Fake]) -> None:
    """The solver aims below the limit, but refuses only what lies beyond it."""
    model, x = network
    smallest = fxprune.compile(model, [x], ratios=1.0, method="l1", recover=None, progress=False)
    least = Fake(model, (x[:1],), {}).time(smallest)
    pruned = fxprune.compile(model, [x], Budget(latency_ms=1.005 * least), method="l1", round_to=1, progress=False)
    assert fxprune.report(pruned).latency.met


def test_what_was_measured_is_not_lost_where_the_prediction_comes_to_refuse(
    network: Any, clock: list[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = network
    smallest = fxprune.compile(model, [x], ratios=1.0, method="l1", recover=None, progress=False)
    least = Fake(model, (x[:1],), {}).time(smallest)
    plain = Fake.models

    def slower_from_now_on(self: Fake, models: Sequence[nn.Module]) -> list[float]:
        late = len(self.measured) >= 2  # the two ends of the way are measured
        dense, *rest = plain(self, models)
        return [dense, *[ms * (1.3 if late else 1.0) for ms in rest]]

    monkeypatch.setattr(Fake, "models", slower_from_now_on)
    pruned = fxprune.compile(model, [x], Budget(latency_ms=1.02 * least), method="l1", progress=False)
    found = fxprune.report(pruned).latency
    assert not found.met and found.measured_ms > found.limit_ms


@pytest.mark.slow
def test_steps_approach_a_latency(network: Any, clock: list[Fake]) -> None:
    model, x = network
    pruned = fxprune.compile(model, [x], Budget(latency=0.5, batch_size=2), steps=2, progress=False)
    found = fxprune.report(pruned).latency
    assert found.met and found.dense_ms == pytest.approx(clock[0].time(model))
    assert found.limit_ms == pytest.approx(0.5 * found.dense_ms)
    before = Cost(1000, 1000, 4000)
    half = schedule(Budget(latency=0.25), before, 0.5, dense_ms=8.0)
    assert half.latency is None and half.latency_ms == pytest.approx(4.0)
    assert schedule(Budget(params=0.5, latency_ms=2.0), before, 1.0, dense_ms=8.0) == Budget(params=500, latency_ms=2.0)


def test_a_latency_is_not_met_blindly(network: Any) -> None:
    coupling = coupling_of("residual")
    with pytest.raises(BudgetError, match=r"fxprune\.compile does, solve alone cannot"):
        fxprune.solve(coupling, random_scores(coupling), Budget(latency=0.5))
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    with pytest.raises(BudgetError, match="meta device"):
        fxprune.compile(
            empty, [torch.randn(2, 4)], Budget(latency=0.5), method="random", recover=None, verify=False, progress=False
        )
    with pytest.raises(BudgetError, match="device: expected one that is here, got 'cuda:99'"):
        Setting.of("cuda:99")
    if not torch.cuda.is_available():
        with pytest.raises(BudgetError, match="device: expected one that is here, got 'cuda'"):
            fxprune.compile(network[0], [network[1]], Budget(latency=0.5, device="cuda"), progress=False)


def test_a_batch_that_is_fixed_is_refused_at_another_size(network: Any) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).reshape(3, 8).relu())

    with pytest.raises(BudgetError, match=r"takes batches of 3 only .* got 1"):
        fxprune.compile(Fixed().eval(), [torch.randn(3, 4)], Budget(latency=0.5), progress=False)


# -- real measuring ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_latency_is_measured(network: Any, tmp_path: Path) -> None:
    model, x = network
    threads = torch.get_num_threads()
    budget = Budget(params=0.5, latency_ms=1e6, batch_size=3, threads=1)
    pruned = fxprune.compile(model, [x], budget, cache_dir=tmp_path, progress=False)
    found = fxprune.report(pruned).latency
    assert min(found.dense_ms, found.measured_ms, found.predicted_ms) > 0 and found.batch_size == 3
    assert torch.get_num_threads() == threads and [p.suffix for p in tmp_path.glob("latency-*")] == [".json"]
    fxprune.save(pruned, tmp_path / "saved")
    assert fxprune.report(fxprune.load(tmp_path / "saved", model)).latency == found

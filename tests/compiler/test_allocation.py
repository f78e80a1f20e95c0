"""Allocation: how a budget is shared out among groups."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune._base.defaults import RIDGE
from fxprune.compiler.allocation import _Curve, _curve, uniform
from fxprune.compiler.trials import Judge, Trials
from tests.models.fn import Fn


def chain(*widths: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def data(count: int = 4, size: int = 16, width: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, width, generator=generator) for _ in range(count)]


def widths(pruned: Any) -> list[int]:
    return [p.shape[0] for name, p in pruned.named_parameters() if name.endswith("weight")][:-1]


def compiled(model: nn.Module, **options: Any) -> Any:
    given: dict[str, Any] = {"budget": 0.6, "method": "l2", "round_to": 1, "progress": False} | options
    return fxprune.compile(model, data(), given.pop("budget"), **given)


def test_uniform_takes_the_same_share_of_every_group() -> None:
    model = chain(6, 40, 80, 20, 3)
    own, alike = (widths(compiled(model, allocation=how)) for how in ("curves", "uniform"))
    assert own != alike
    shares = [kept / whole for kept, whole in zip(alike, (40, 80, 20), strict=True)]
    assert max(shares) - min(shares) <= 1 / 20 + 1e-9


def test_uniform_keeps_the_order_within_a_group() -> None:
    model = chain(6, 12, 3)
    coupling = fxprune.couple(fxprune.capture(model, (data()[0],)))
    (group,) = coupling.groups
    score = torch.randn(12, dtype=torch.float64)
    found = uniform({group.name: score}, [group])[group.name]
    assert torch.equal(found.argsort(), score.argsort()) and found.max() == 1 and found.min() == 1 / 12


def deaf(m: Any, x: Tensor) -> Tensor:
    """Two branches; the outputs hardly hear the one whose weights are large."""
    return m.out(m.a(x).relu()) + 1e-3 * m.end(m.b(x).relu())


@pytest.mark.parametrize("method", ["l2", "variance"])
def test_search_prunes_what_the_outputs_hardly_hear(method: str) -> None:
    torch.manual_seed(0)
    parts = {"a": nn.Linear(6, 32), "b": nn.Linear(6, 32), "out": nn.Linear(32, 3), "end": nn.Linear(32, 3)}
    model = Fn(deaf, **parts).eval()
    for layer in (model.b, model.end):
        layer.weight.data *= 4
    own, found = (compiled(model, allocation=how, method=method) for how in ("curves", "search"))
    kept = dict(found.named_parameters())
    assert kept["a.weight"].shape[0] > 28 > 12 > kept["b.weight"].shape[0]
    error = [sum(float((p(x) - model(x)).detach().square().sum()) for x in data()) for p in (own, found)]
    assert error[1] < error[0] / 10
    assert found.report.params[1] <= 0.6 * found.report.params[0] and found.certificate.verified
    (note,) = (note for note in found.report.notes if "allocation" in note)
    assert "'search' leaves the outputs of the last batch" in note and "'curves'" in note and "'uniform'" in note


def test_search_is_no_worse_than_the_others_on_the_batch_that_it_is_judged_by() -> None:
    for seed in range(3):
        model = chain(6, 24, 24, 24, 3, seed=seed)
        error = {}
        for how in ("curves", "uniform", "search"):
            pruned = compiled(model, allocation=how, budget=0.4, ridge=RIDGE)
            error[how] = float((pruned(data()[-1]) - model(data()[-1])).detach().square().mean())
            assert pruned.report.params[1] <= 0.4 * pruned.report.params[0]
        assert error["search"] <= min(error.values()) * 1.001  # neither recovery nor trials have seen it


def test_a_curve_goes_through_what_was_measured() -> None:
    curve = _curve(torch.tensor([4.0, 1.0, 2.0, 3.0]))
    assert curve.order == [1, 2, 3, 0]
    torch.testing.assert_close(curve.own, torch.tensor([0.1, 0.3, 0.6, 1.0], dtype=torch.float64))
    found = _Curve(curve.order, curve.own, ((1, 0.02), (3, 0.12))).scores()
    assert float(found[[1, 2, 3]].sum()) == pytest.approx(0.12, rel=1e-6)
    assert float(found[1]) == pytest.approx(0.02, rel=1e-6)
    alone = _Curve([0], torch.ones(1, dtype=torch.float64), ((1, 0.5),)).scores()
    assert float(alone[0]) == pytest.approx(0.5, rel=1e-6)


def test_blocks_and_widths_are_measured_in_one_ranking() -> None:
    class Block(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.a, self.b, self.scale = nn.Linear(6, 16), nn.Linear(16, 6), scale

        def forward(self, x: Tensor) -> Tensor:
            return x + self.scale * self.b(self.a(x).relu())

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), Block(1.0), Block(1e-3), Block(1.0), nn.Linear(6, 2)).eval()
    pruned = compiled(model, allocation="search", units=("channel", "block"), ignore=("0", "4"), budget=0.7)
    left = {name for name, _ in pruned.named_parameters()}
    assert not left & {"2.a.weight", "2.b.weight"} and left > {"1.a.weight", "3.a.weight"}


def test_divergence_is_of_logits_or_else_of_all_outputs() -> None:
    a = torch.randn(5, 7)
    assert Judge({"logits": a})({"logits": a + 3}) == pytest.approx(0, abs=1e-9)  # a softmax does not see it
    assert Judge(a)(a) == 0 < Judge((a, a))((a, a + 1))
    assert Judge(a)(a * torch.nan) == 1e6
    banned = torch.where(torch.arange(7) == 3, -torch.inf, a)
    assert 0 < Judge({"logits": banned})({"logits": banned * 2}) < 10
    assert 0 < Judge(banned)(banned * 2) < 10


class Normed(nn.Module):
    """A statistic over channels that go, and a bias that takes a shift."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.end = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.layer_norm(self.a(x), (16,))
        out: Tensor = self.end((y + self.b(y).relu()).softmax(-1) + y.mean(-1, keepdim=True))
        return out


@pytest.mark.parametrize("model", [chain(6, 24, 24, 3), Normed()])
def test_what_is_known_before_a_change_is_not_computed_anew_and_makes_no_difference(model: nn.Module) -> None:
    coupling = fxprune.couple(fxprune.capture(model.eval(), (data()[0],)))
    trials = Trials(coupling, [(x,) for x in data()], 1e-2, 1 << 30)
    for group in coupling.groups:
        removed = coupling.removed_mask(group.units[: len(group.units) // 2])
        found = trials.loss(removed)
        kept, trials._values = trials._values, {}
        assert found == pytest.approx(trials.loss(removed), rel=1e-9) and found > 0
        trials._values = kept


@pytest.mark.parametrize("size", [1, 2, 16])
def test_of_a_single_batch_the_last_samples_are_judged_by_and_not_recovered_from(size: int) -> None:
    """Fewer samples than columns can be made up for exactly: what the outputs lose must be seen on others."""
    torch.manual_seed(0)
    model, x = chain(6, 64, 3), torch.randn(size, 6)
    coupling = fxprune.couple(fxprune.capture(model, (torch.randn(16, 6),)))
    removed = coupling.removed_mask(coupling.groups[0].units[:16])
    alone = Trials(coupling, [(x,)], 1e-6, 1 << 30).loss(removed)
    if size < 4:  # too few to hold any out
        assert alone < 1e-4
        return
    apart = Trials(coupling, [(x[:12],), (x[12:],)], 1e-6, 1 << 30).loss(removed)
    assert alone == pytest.approx(apart, rel=1e-3) and alone > 1e-3


def test_a_layer_whose_statistics_do_not_fit_is_not_recovered() -> None:
    model = chain(6, 24, 3)
    coupling = fxprune.couple(fxprune.capture(model, (data()[0],)))
    removed = coupling.removed_mask(coupling.groups[0].units[:12])
    inputs = [(x,) for x in data()]
    rich, poor = (Trials(coupling, inputs, 1e-2, limit).loss(removed) for limit in (1 << 30, 64))
    assert rich < poor < float("inf")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"allocation": "even"}, "allocation must be among curves, uniform, search, got 'even'"),
        ({"allocation": "uniform", "budget": None, "ratios": 0.5}, "ratios are shares already"),
        ({"allocation": "search", "recover": "reinit"}, "expected allocation='curves' or 'uniform'"),
        ({"allocation": "search", "budget": fxprune.Budget(latency=0.9)}, "expected a budget of params or macs"),
    ],
)
def test_what_cannot_be_shared_out_is_told(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text.replace("(", r"\(")):
        compiled(chain(6, 8, 3), **options)


def test_every_step_says_what_it_found() -> None:
    report = compiled(chain(6, 24, 24, 3), allocation="search", steps=2).report
    assert 1 <= sum("allocation" in note for note in report.notes) <= 2 and report.params[1] <= 0.6 * report.params[0]


def test_search_needs_values() -> None:
    options: dict[str, Any] = {"recover": None, "verify": False, "method": "random"}
    with pytest.raises(ValueError, match="meta device"):
        compiled(chain(6, 8, 3).to("meta"), allocation="search", **options)


@pytest.mark.parametrize("recover", [None, "mean_shift", "sequential"])
def test_any_recovery_may_follow(recover: str | None) -> None:
    pruned = compiled(chain(6, 24, 24, 3), allocation="search", recover=recover)
    assert pruned.certificate.verified and any("recovered by covariance" in note for note in pruned.report.notes)


def test_what_there_is_no_memory_for_is_told() -> None:
    notes = compiled(chain(6, 24, 24, 3), allocation="search", memory_limit=16 * 24 * 24 + 10).report.notes
    assert any("no memory to recover 4.weight" in note for note in notes)

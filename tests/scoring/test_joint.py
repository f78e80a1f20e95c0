"""Joint elimination: copies go first, and what the allocation promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune._base.errors import ScorerError
from fxprune.budget.solver import solve
from fxprune.capturing.inputs import inputs_of
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.unit_scores import STAYS
from fxprune.scoring import score
from fxprune.scoring.joint import Joint, allocate, hull
from fxprune.scoring.scorer import Context, scored, scorer_of
from tests.models import small
from tests.models.fn import Fn
from tests.support.formulas import copies
from tests.support.pruning import coupling_of, prepared


def test_the_scorer_removes_copies_first_and_recovery_makes_up_for_them() -> None:
    coupling, model, data = copies()
    found = score(coupling, data, Joint(ridge=1e-8))["a"]
    first = set(found.argsort()[:3].tolist())
    assert {i % 3 for i in first} == {0, 1, 2}  # one of each pair
    assert found.sort().values[2] < 1e-3 * found.sort().values[3]
    pruned = fxprune.compile(
        model,
        [batch[0] for batch in data],
        method=Joint(ridge=1e-8),
        ratios={"a": 0.5, "default": 0.0},
        ridge=1e-8,
        progress=False,
    )
    assert pruned.get_parameter("a.weight").shape[0] == 3
    assert torch.allclose(pruned(data[0][0]), model(data[0][0]), atol=1e-4)


def test_an_error_counts_by_how_much_it_moves_the_outputs() -> None:
    def build(scale: float) -> Coupling:
        torch.manual_seed(1)
        model = Fn(
            lambda m, x: m.head(m.b(m.a(x).relu()).tanh()), a=nn.Linear(5, 8), b=nn.Linear(8, 2), head=nn.Linear(2, 1)
        )
        coupling = prepared(model, (torch.randn(4, 5, dtype=torch.float64),))[1]
        with torch.no_grad():
            model.head.weight[:] = torch.tensor([[1.0, scale]])  # the second output of b matters by this
        return coupling

    data = [(torch.randn(64, 5, dtype=torch.float64),)]
    only = build(0.0)
    weight = only.captured.module.get_parameter("b.weight")
    with torch.no_grad():
        weight[0, :4] = 0  # the output that matters does not read these
    order = score(only, data, "joint")["a"].argsort().tolist()
    assert set(order[:4]) == {0, 1, 2, 3}


@pytest.mark.parametrize("name", small.NETWORKS)
@pytest.mark.parametrize("limit", [2 << 30, 1 << 14])
def test_every_unit_gets_a_finite_score_with_little_memory_too(name: str, limit: int) -> None:
    coupling = coupling_of(name)
    found = score(coupling, [small.example(name)], "obs" if limit > 1 << 20 else "joint", memory_limit=limit)
    assert {name: len(s) for name, s in found.items()} == {g.name: len(g.units) for g in coupling.groups}
    assert all(torch.isfinite(s).all() and (s >= 0).all() for s in found.values())


def test_scores_rise_strictly_along_the_order_whatever_the_errors() -> None:
    for errors in ([3.0, 1.0, 1.0, 5.0], [0.0] * 4, [1e-12, 0.0, 2.0, 2.0]):
        order = [2, 0, 3, 1]
        found = allocate(order, errors)
        assert found.argsort().tolist() == order and (found[order].diff() > 0).all()


def test_scores_are_the_slopes_of_the_lower_hull() -> None:
    found = hull([2, 0, 3, 1, 4], [1.0, 5.0, 3.0, 8.0, 8.0])
    assert found.argsort().tolist() == [2, 0, 3, 1, 4]
    torch.testing.assert_close(found[[2, 0, 3, 1, 4]], torch.tensor([1.0, 4.0, 4.0, 8.0, 8.0], dtype=torch.float64))
    assert (hull([0, 1], [3.0, 1.0]).diff() > 0).all()


def test_obs_is_second_order_in_the_loss_where_there_are_targets_and_in_the_outputs_where_not() -> None:
    """What the loss does not depend on may go first, whatever it does to the outputs."""
    torch.manual_seed(0)
    model = Fn(lambda m, x: m.b(m.a(x).tanh()), a=nn.Linear(6, 12), b=nn.Linear(12, 4))
    with torch.no_grad():
        model.b.weight[:2, :6] = 0  # the first two outputs read the last six
        model.b.weight[2:, 6:] = 0
    x = torch.randn(64, 6)
    target = torch.cat([torch.zeros(64, 2), torch.full((64, 2), torch.nan)], 1)

    def first_two(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets)[:, :2].square().mean()

    ratios = {"a": 0.5, "default": 0.0}
    labelled = fxprune.compile(model, [(x, target)], ratios=ratios, method="obs", loss=first_two, progress=False)
    assert fxprune.report(labelled).plan.keep["a.weight"][0] == tuple(range(6, 12))
    plain = fxprune.compile(model, [(x,)], ratios=ratios, method="obs", progress=False)
    assert 0 < sum(i < 6 for i in fxprune.report(plain).plan.keep["a.weight"][0]) < 6


def test_obs_takes_a_loss_without_targets_and_says_where_gradients_overflow() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 4)), torch.randn(16, 8)
    seen = []

    def loss(outputs: Tensor, targets: None) -> Tensor:
        seen.append(targets)
        return outputs.square().mean()

    fxprune.compile(model, [x], 0.6, method="obs", loss=loss, progress=False)
    assert seen == [None]
    with pytest.raises(ScorerError, match=r"2.weight: the gradients at its outputs are not finite"):
        fxprune.compile(model, [x], 0.6, method="obs", loss=lambda y, _: y.mean() * float("inf"), progress=False)
    with pytest.raises(fxprune.NothingToPruneError):
        fxprune.compile(model, [x], 0.6, method="obs", ignore="*", progress=False)
    one = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 1))
    small = fxprune.compile(one, [*x[:4].split(1)], 0.6, method="obs", progress=False)
    assert fxprune.report(small).verified is not False  # one number alone may not tell


def test_what_may_not_go_is_not_scored() -> None:
    coupling, _, data = copies()
    context = Context(coupling, inputs_of(data), free={coupling.groups[0].name})
    found = scored(context, scorer_of("obs"))
    assert torch.isfinite(found[coupling.groups[0].name]).all()
    assert all((found[group.name] == STAYS).all() for group in coupling.groups[1:])


@pytest.mark.parametrize("largest", [4.0, 1e6])
def test_the_last_unit_is_worth_the_fourth_root_of_the_whole_and_an_outlier_no_more(largest: float) -> None:
    found = allocate(list(range(11)), [0.5] * 5 + [1.0] * 5 + [largest])
    assert float(found[10]) == pytest.approx(11.5**0.25, rel=1e-6)
    assert float(found[5]) == pytest.approx(1 / 9 * 11.5**0.25, rel=1e-6)


def test_a_model_without_a_derivative_is_refused() -> None:
    model = Fn(lambda m, x: m.b(m.a(x).relu()).argmax(1), a=nn.Linear(5, 8), b=nn.Linear(8, 3))
    coupling = prepared(model, (torch.randn(6, 5, dtype=torch.float64),))[1]
    with pytest.raises(ScorerError, match="an output with a derivative"):
        score(coupling, [(torch.randn(6, 5, dtype=torch.float64),)], "joint")


def test_a_group_that_stays_in_part_is_refused() -> None:
    coupling, _, _ = copies()
    scores = {g.name: torch.ones(len(g.units)) for g in coupling.groups}
    scores["a"][0] = STAYS
    with pytest.raises(ScorerError, match="1 scores are not finite"):
        solve(coupling, scores, ratios=0.5)

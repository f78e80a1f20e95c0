"""Joint elimination: copies go first, and what the allocation promises."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxprune
from fxprune._base.errors import ScorerError
from fxprune.budget.solver import solve
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.unit_scores import STAYS
from fxprune.scoring import score
from fxprune.scoring.joint import Joint, allocate
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
    found = score(coupling, [small.example(name)], "joint", memory_limit=limit)
    assert {name: len(s) for name, s in found.items()} == {g.name: len(g.units) for g in coupling.groups}
    assert all(torch.isfinite(s).all() and (s >= 0).all() for s in found.values())


def test_scores_rise_strictly_along_the_order_whatever_the_errors() -> None:
    for errors in ([3.0, 1.0, 1.0, 5.0], [0.0] * 4, [1e-12, 0.0, 2.0, 2.0]):
        order = [2, 0, 3, 1]
        found = allocate(order, errors)
        assert found.argsort().tolist() == order and (found[order].diff() > 0).all()


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

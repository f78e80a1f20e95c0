"""Criteria: what each gives a unit, how scores of layers compare, and where they are written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxprune._base.errors import ScorerError
from fxprune.capturing.inputs import PlainInputs
from fxprune.coupling.coupling import Coupling
from fxprune.scoring import register_scorer, score, scorer_of
from fxprune.scoring.engine.shares import layers_that, remaining_share
from fxprune.scoring.magnitude import Magnitude
from fxprune.scoring.scorer import Context
from fxprune.scoring.variance import Variance, Welford
from tests.models import small
from tests.support.pruning import Fn, prepared


def _order(scores: Tensor) -> list[int]:
    return scores.argsort(stable=True).tolist()


def _two(seed: int = 0) -> tuple[Coupling, nn.Module]:
    torch.manual_seed(seed)
    model = Fn(lambda m, x: m.b(m.a(x).relu()), a=nn.Linear(5, 8), b=nn.Linear(8, 3))
    return prepared(model, (torch.randn(6, 5, dtype=torch.float64),), seed)[1], model


# -- magnitude ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_magnitude_ranks_a_layer_by_the_norm_of_its_rows(p: int, dtype: torch.dtype) -> None:
    coupling, model = _two()
    model.to(dtype)
    (found,) = score(coupling, [], Magnitude(p=p)).values()
    assert _order(found) == _order(model.a.weight.detach().double().norm(p, dim=1))


def test_magnitude_sums_the_shares_of_all_layers_that_make_a_unit() -> None:
    model = Fn(lambda m, x: m.c(m.a(x) + m.b(x)), a=nn.Linear(5, 4), b=nn.Linear(5, 4), c=nn.Linear(4, 2))
    coupling = prepared(model, (torch.randn(6, 5, dtype=torch.float64),))[1]
    norms = [layer.weight.detach().norm(dim=1) for layer in (model.a, model.b)]
    (found,) = score(coupling, [], "l2").values()
    assert _order(found) == _order(sum(n / n.sum() for n in norms))


def test_a_zero_layer_scores_zero_and_not_nan() -> None:
    coupling, model = _two()
    nn.init.zeros_(model.a.weight)
    (found,) = score(coupling, [], "l1").values()
    assert torch.equal(found, torch.zeros_like(found))


# -- how groups compare -------------------------------------------------------------------------------------------


def test_the_remaining_share_is_lamp_times_the_layers() -> None:
    scores = {"g": torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)}
    shares = remaining_share(scores, {"g": 4.0})["g"]
    assert torch.allclose(shares, (6 + 4) * torch.tensor([3 / 3, 1 / 6, 2 / 5], dtype=torch.float64))
    assert not remaining_share({"g": torch.zeros(2)}, {"g": 1.0})["g"].isnan().any()


def test_an_outlier_leaves_the_other_units_their_shares() -> None:
    many, whole = [1.0] * 9, {"g": 0.0}
    found = [remaining_share({"g": torch.tensor([*many, x])}, whole)["g"] / (9 + x) for x in (4.0, 1e6)]
    assert torch.allclose(*found)
    sparse = remaining_share({"g": torch.tensor([0.0] * 18 + [1.0, 2.0])}, whole)["g"]
    assert torch.allclose(sparse[-2:], torch.tensor([1.0, 3.0]))  # only scores above zero tell what is usual


def test_layers_are_counted_on_both_sides_by_their_share() -> None:
    model = Fn(  # c reads a and b side by side, d reads b alone
        lambda m, x: (m.c(torch.cat([m.a(x), m.b(x)], 1)), m.d(m.b(x))),
        a=nn.Linear(5, 6), b=nn.Linear(5, 2), c=nn.Linear(8, 3), d=nn.Linear(2, 3),
    )  # fmt: skip
    coupling = prepared(model, (torch.randn(4, 5, dtype=torch.float64),))[1]
    context = Context(coupling, PlainInputs(()))
    assert layers_that(context, read=True) == pytest.approx({"a": 6 / 8, "b": 2 / 8 + 1})
    assert layers_that(context, read=False) == pytest.approx({"a": 1, "b": 1})


def test_no_layer_of_a_dense_block_is_left_almost_empty() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 32, 1)
            self.norms = nn.ModuleList(nn.BatchNorm2d(32 + 8 * i) for i in range(8))
            self.grow = nn.ModuleList(nn.Conv2d(32 + 8 * i, 8, 3, padding=1) for i in range(8))
            self.head = nn.Conv2d(32 + 64, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            parts = [self.stem(x)]
            for norm, grow in zip(self.norms, self.grow, strict=True):
                parts.append(grow(norm(torch.cat(parts, 1)).relu()))
            return self.head(torch.cat(parts, 1))

    from fxprune.budget.budget import Budget
    from fxprune.budget.solver import solve

    coupling = prepared(Dense(), (torch.randn(2, 3, 4, 4, dtype=torch.float64),))[1]
    assert sorted(len(group.units) for group in coupling.groups) == [8] * 8 + [32]
    solution = solve(coupling, score(coupling, [], "magnitude"), Budget(params=0.5))
    slicer = coupling.slicer(solution.removed)
    kept = [slicer.count(coupling.parameter(f"grow.{i}.weight")[0]) for i in range(8)]
    assert slicer.count(coupling.parameter("stem.weight")[0]) >= 8 and min(kept) >= 2


# -- variance -----------------------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.sampled_from([0.0, 1e6]))
def test_welford_gives_mean_and_variance_of_all_batches(sizes: list[int], offset: float) -> None:
    generator = torch.Generator().manual_seed(sum(sizes))
    parts = [torch.randn(n, 3, 2, generator=generator, dtype=torch.float64) + offset for n in sizes]
    welford = Welford()
    for part in parts:
        welford.add(part, 1)
    whole = torch.cat(parts).movedim(1, -1).reshape(-1, 3)
    assert torch.allclose(welford.mean, whole.mean(0), rtol=1e-12)
    assert torch.allclose(welford.variance, whole.var(0, correction=0), rtol=1e-6, atol=1e-9)


def test_float32_batches_are_summed_in_float64() -> None:
    x = torch.randn(1000, 2) * 1e-3 + 1000
    welford = Welford()
    for part in x.split(50):
        welford.add(part, 1)
    assert torch.allclose(welford.variance, x.double().var(0, correction=0), rtol=1e-3)


def test_variance_is_that_of_what_the_reader_gets() -> None:
    coupling, model = _two()
    batches = [(torch.randn(n, 5, dtype=torch.float64),) for n in (7, 20)]
    hidden = torch.cat([model.a(*batch).relu() for batch in batches]).detach()
    (raw,) = score(coupling, batches, Variance(weighted=False)).values()
    assert torch.allclose(raw, hidden.var(0, correction=0), rtol=1e-9)
    (weighted,) = score(coupling, batches, "variance").values()
    assert _order(weighted) == _order(hidden.var(0, correction=0) * model.b.weight.detach().square().sum(0))


def test_a_constant_unit_goes_first() -> None:
    coupling, model = _two()
    with torch.no_grad():
        model.a.weight[3] = 0
    batches = [(torch.randn(20, 5, dtype=torch.float64),)]
    (found,) = score(coupling, batches, "variance").values()
    assert _order(found)[0] == 3 and found[3] == 0


# -- the machinery ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", small.NETWORKS)
@pytest.mark.parametrize("method", ["l1", "l2", "magnitude", "variance", "random"])
def test_every_unit_of_every_group_gets_a_finite_score(name: str, method: str) -> None:
    coupling = small.network(name)
    found = score(coupling, [small.example(name)], method, seed=1)
    assert {name: len(s) for name, s in found.items()} == {g.name: len(g.units) for g in coupling.groups}
    assert all(torch.isfinite(s).all() and (s >= 0).all() for s in found.values())


def test_random_scores_follow_the_seed() -> None:
    coupling = small.network("residual")
    one, same, other = (score(coupling, [], "random", seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_scores_are_written_on_the_nodes_with_nan_where_frozen() -> None:
    coupling = small.network("residual")
    found = score(coupling, [], "l1")
    nodes = {str(n.target): n.meta.get("fxprune", {}) for n in coupling.values if n.op == "get_attr"}
    assert torch.isnan(nodes["stem.0.weight"][1]).all()  # the image's channels
    (group,) = [g for g in coupling.groups if g.name == "one.0"]
    assert torch.equal(nodes["one.0.weight"][0].sort().values, found["one.0"].sort().values)
    assert len(group.units) == 8


def test_an_object_of_ones_own_and_one_by_name() -> None:
    class Last:
        """Keeps the first units."""

        name, needs, per_cost, defaults = "last", (), False, {}

        def score(self, context: Context) -> dict[str, Tensor]:
            return {g.name: -torch.arange(len(g.units)).double() for g in context.coupling.groups}

    coupling = small.network("residual")
    assert score(coupling, [], Last())["one.0"].tolist() == [-float(i) for i in range(8)]
    register_scorer("test: last", Last)
    assert isinstance(scorer_of("test: last"), Last)
    with pytest.raises(ScorerError, match="registered already"):
        register_scorer("test: last", Last)


@pytest.mark.parametrize("bad", ["magic", Magnitude, object(), None, 3])
def test_what_is_no_scorer(bad: Any) -> None:
    with pytest.raises(ScorerError, match=r"known methods: .*variance|name or an object with .score"):
        scorer_of(bad)

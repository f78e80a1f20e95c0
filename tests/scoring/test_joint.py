"""Greedy elimination against explicit least squares, what the allocation promises, and which groups are MLPs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune._base.errors import NothingToPruneError, ScorerError
from fxprune.budget.solver import solve
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.unit_scores import STAYS
from fxprune.scoring import score, scorer_of
from fxprune.scoring.engine.elimination import Reader, eliminate
from fxprune.scoring.engine.scope import mlp_groups
from fxprune.scoring.joint import Joint, allocate
from fxprune.scoring.variance import Variance
from tests.models import small
from tests.support.pruning import Fn, prepared

# -- elimination against a naive reference ------------------------------------------------------------------------


def _least(gram: Tensor, weight: Tensor, kept: list[int], level: float) -> float:
    """Returns ``min tr((W - V) C (W - V)^T) + level |W - V|^2`` over V that is zero off ``kept``, by least squares.

    Rows of A = [C^1/2; level^1/2 I]: the penalty is that of the change of every weight, removed ones included.
    """
    values, vectors = torch.linalg.eigh(gram)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    a = torch.cat([root, level**0.5 * torch.eye(len(gram), dtype=gram.dtype)])
    want = a @ weight.T
    rest = want - a[:, kept] @ torch.linalg.lstsq(a[:, kept], want).solution if kept else want
    return float(rest.square().sum())


def _naive(readers: list[Reader], count: int, ridge: float) -> tuple[list[int], list[float]]:
    def error(gone: list[int]) -> float:
        total = 0.0
        for r in readers:
            lost = {int(c) for u in gone for c in r.columns[u]}
            kept = [c for c in range(len(r.gram)) if c not in lost]
            total += _least(r.gram, r.weight, kept, ridge * float(r.gram.diagonal().mean()))
        return total

    order: list[int] = []
    errors: list[float] = []
    for _ in range(count):
        now = error(order)
        costs = {u: error([*order, u]) - now for u in range(count) if u not in order}
        best = min(costs, key=costs.__getitem__)
        order.append(best)
        errors.append(costs[best])
    return order, errors


def _linear(seed: int) -> list[Reader]:
    """Two linear layers that read seven units of a small MLP."""
    torch.manual_seed(seed)
    hidden = torch.randn(60, 4, dtype=torch.float64) @ torch.randn(4, 7, dtype=torch.float64)
    hidden = (hidden + 0.3 * torch.randn_like(hidden)).relu()
    columns = torch.arange(7)[:, None]
    return [Reader(hidden.T.cov(), torch.randn(k, 7, dtype=torch.float64), columns) for k in (3, 5)]


def _conv(seed: int) -> list[Reader]:
    """A 3x3 convolution that reads five channels: blocks of nine columns."""
    torch.manual_seed(seed)
    maps = F.conv2d(torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.randn(5, 3, 3, 3, dtype=torch.float64))
    unfolded = F.unfold(maps.relu(), 3, padding=1).transpose(1, 2).reshape(-1, 45)
    weight = torch.randn(4, 45, dtype=torch.float64)
    return [Reader(unfolded.T.cov(), weight, torch.arange(45).reshape(5, 9))]


@pytest.mark.parametrize("build", [_linear, _conv])
@pytest.mark.parametrize("ridge", [1e-4, 1e-1])
@pytest.mark.parametrize("seed", range(3))
def test_order_and_errors_are_those_of_least_squares_for_every_candidate(build: Any, ridge: float, seed: int) -> None:
    readers = build(seed)
    count = len(readers[0].columns)
    order, errors = eliminate(readers, count, ridge)
    expected, costs = _naive(readers, count, ridge)
    assert order == expected
    assert errors == pytest.approx(costs, rel=1e-6, abs=1e-9 * sum(costs))


def test_units_with_fewer_columns_are_filled_up() -> None:
    (reader,) = _conv(0)
    ragged = reader.columns.clone()
    ragged[1, 4:], ragged[3, 1:] = 45, 45  # the other columns belong to no unit and stay
    order, errors = eliminate([Reader(reader.gram, reader.weight, ragged)], 5, 1e-2)

    class Ragged:
        gram, weight = reader.gram, reader.weight
        columns = [[c for c in row if c < 45] for row in ragged.tolist()]  # noqa: RUF012

    expected, costs = _naive([Ragged()], 5, 1e-2)  # type: ignore[list-item]
    assert order == expected and errors == pytest.approx(costs, rel=1e-6)


def test_what_others_mix_to_goes_first_and_costs_about_the_ridge() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 6, dtype=torch.float64)
    x[:, 5] = x[:, 1]  # a copy
    x[:, 2] = 0.5 * x[:, 0] - 0.7 * x[:, 3]  # a mix
    weight, columns = torch.randn(3, 6, dtype=torch.float64), torch.arange(6)[:, None]
    for ridge in (1e-6, 1e-9):
        order, errors = eliminate([Reader(x.T.cov(), weight, columns)], 6, ridge)
        assert len({1, 5} & set(order[:2])) == 1 and len({0, 2, 3} & set(order[:2])) == 1
        assert sum(errors[:2]) < 10 * ridge * float(weight.square().sum()) < 1e-3 * errors[2]


def test_a_layer_that_never_varies_costs_nothing() -> None:
    reader = Reader(
        torch.zeros(4, 4, dtype=torch.float64), torch.ones(2, 4, dtype=torch.float64), torch.arange(4)[:, None]
    )
    order, errors = eliminate([reader], 4, 1e-2)
    assert sorted(order) == [0, 1, 2, 3] and errors == [0.0] * 4


# -- the scorer ---------------------------------------------------------------------------------------------------


def _captured(batches: int = 3) -> tuple[Coupling, nn.Module, list[tuple[Tensor, ...]]]:
    """A conv net whose second half of inner channels copies the first."""
    torch.manual_seed(0)
    model = Fn(
        lambda m, x: m.head(m.b(m.a(x).relu()).relu().mean((2, 3))),
        a=nn.Conv2d(3, 6, 3, padding=1), b=nn.Conv2d(6, 4, 3, padding=1), head=nn.Linear(4, 3),
    )  # fmt: skip
    data = [(torch.randn(8, 3, 6, 6, dtype=torch.float64),) for _ in range(batches)]
    coupling = prepared(model, data[0])[1]
    with torch.no_grad():
        for tensor in (model.a.weight, model.a.bias):
            tensor[3:] = tensor[:3]
    return coupling, model, data


def test_the_scorer_removes_copies_first_and_recovery_makes_up_for_them() -> None:
    coupling, model, data = _captured()
    found = score(coupling, data, Joint(ridge=1e-8))["a"]
    first = set(found.argsort()[:3].tolist())
    assert {i % 3 for i in first} == {0, 1, 2}  # one of each pair
    assert found.sort().values[2] < 1e-3 * found.sort().values[3]
    pruned = fxprune.compile(
        model, [batch[0] for batch in data], method=Joint(ridge=1e-8), ratios={"a": 0.5, "default": 0.0},
        ridge=1e-8, progress=False,
    )  # fmt: skip
    assert pruned.get_parameter("a.weight").shape[0] == 3
    assert torch.allclose(pruned(data[0][0]), model(data[0][0]), atol=1e-4)


def test_an_error_counts_by_how_much_it_moves_the_outputs() -> None:
    def build(scale: float) -> Coupling:
        torch.manual_seed(1)
        model = Fn(
            lambda m, x: m.head(m.b(m.a(x).relu()).tanh()),
            a=nn.Linear(5, 8), b=nn.Linear(8, 2), head=nn.Linear(2, 1),
        )  # fmt: skip
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
    coupling = small.network(name)
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


# -- scope --------------------------------------------------------------------------------------------------------


def _bert() -> tuple[nn.Module, tuple[Tensor, ...], int]:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=12,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False), (torch.randint(30, (2, 6)),), 24


def _vit() -> tuple[nn.Module, tuple[Tensor, ...], int]:
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3)
    return model, (torch.randn(2, 3, 16, 16, dtype=torch.float64),), 64


def _gated() -> tuple[nn.Module, tuple[Tensor, ...], int]:
    model = nn.Sequential(nn.Linear(4, 12), small.Block(inner=20), small.Block(inner=20), nn.Linear(12, 3))
    return model, (torch.randn(2, 5, 4, dtype=torch.float64),), 20


@pytest.mark.parametrize("build", [_bert, _vit, _gated])
def test_the_scope_finds_the_mlps_and_nothing_else(build: Any) -> None:
    torch.manual_seed(0)
    model, example, hidden = build()
    coupling = prepared(model, example)[1]
    found = mlp_groups(coupling)
    assert [len(group.units) for group in found] == [hidden, hidden] and len(coupling.groups) > 2
    scores = score(coupling, [example], "vbp")
    inside = {group.name for group in found}
    assert all((scores[g.name] == STAYS).all() == (g.name not in inside) for g in coupling.groups)
    solution = solve(coupling, scores, ratios=0.5)
    assert set(solution.units.tolist()) < set(itertools.chain(*(g.units.tolist() for g in found)))
    assert len(solution.units) == hidden


def test_a_network_without_mlp_has_nothing_in_scope() -> None:
    coupling, _, data = _captured()
    assert not mlp_groups(coupling)
    with pytest.raises(NothingToPruneError, match=r"one linear layer makes .* use scope='all'"):
        score(coupling, data, Variance(scope="mlp"))
    with pytest.raises(ScorerError, match="scope must be one of all, mlp, got 'heads'"):
        Variance(scope="heads")


def test_a_group_that_stays_in_part_is_refused() -> None:
    coupling, _, _ = _captured()
    scores = {g.name: torch.ones(len(g.units)) for g in coupling.groups}
    scores["a"][0] = STAYS
    with pytest.raises(ScorerError, match="1 scores are not finite"):
        solve(coupling, scores, ratios=0.5)


def test_vbp_is_raw_variance_over_all_mlps_at_once_with_its_mean_shift() -> None:
    vbp = scorer_of("vbp")
    assert vbp.defaults == {"recover": "mean_shift"} and not vbp.per_cost
    torch.manual_seed(0)
    model, example, _ = _gated()
    coupling = prepared(model, example)[1]
    plain, mine = score(coupling, [example], Variance(weighted=False)), score(coupling, [example], vbp)
    assert all(torch.equal(mine[g.name], plain[g.name]) for g in mlp_groups(coupling))


#: Share of hidden units removed, and the published change of MACs and parameters in percent (arXiv 2507.12988).
DEIT = [
    ("deit_tiny_patch16_224", 0.45, -25.2, -28.0),  # comes out as -25.0, -27.9
    ("deit_small_patch16_224", 0.5, -30.4, -32.2),  # -30.3, -32.1
    ("deit_base_patch16_224", 0.55, -34.9, -36.0),  # -34.9, -36.0
    ("deit_base_patch16_224", 0.2, -12.7, -13.1),  # -12.7, -13.1
]


@pytest.fixture(scope="module")
def deits() -> dict[str, Coupling]:
    return {}


@pytest.mark.parametrize(("name", "share", "macs", "params"), DEIT)
def test_counts_are_those_published_for_deit(
    name: str, share: float, macs: float, params: float, deits: dict[str, Coupling]
) -> None:
    import timm

    from fxprune.capturing.captured import capture
    from fxprune.coupling.interpreter import couple

    if name not in deits:
        model = timm.create_model(name).eval()
        deits[name] = couple(capture(model, (torch.randn(2, 3, 224, 224),)))
    coupling = deits[name]
    units = {g.name: torch.arange(len(g.units)).double() for g in coupling.groups}
    ratios = {group.name: share for group in mlp_groups(coupling)}
    assert len(ratios) == 12
    solution = solve(coupling, units, ratios={**ratios, "default": 0.0})
    before, after = solution.before, solution.after
    assert 100 * (after.macs / before.macs - 1) == pytest.approx(macs, abs=0.25)
    assert 100 * (after.params / before.params - 1) == pytest.approx(params, abs=0.15)

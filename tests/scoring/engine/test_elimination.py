"""Greedy elimination against explicit least squares."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fxprune.scoring.engine.elimination import Reader, eliminate


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


@pytest.mark.parametrize("columns", [1, 3])
def test_wide_layers_lose_several_at_once_and_hardly_another_choice(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x = (torch.randn(900, 40, dtype=torch.float64) @ torch.randn(40, 240, dtype=torch.float64)).relu()
    readers = [
        Reader(x.T.cov(), torch.randn(k, 240, dtype=torch.float64), torch.arange(240).reshape(-1, columns))
        for k in (20, 300)
    ]
    count = 240 // columns
    order, errors = eliminate(readers, count, 1e-2)
    assert sorted(order) == list(range(count))
    monkeypatch.setattr("fxprune.scoring.engine.elimination._AT_ONCE", 10**6)
    one_by_one = eliminate(readers, count, 1e-2)[1]
    for many in (count // 4, count // 2, count):
        assert sum(errors[:many]) == pytest.approx(sum(one_by_one[:many]), rel=2e-3)

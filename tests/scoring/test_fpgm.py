"""FPGM: the sum of a filter's distances."""

from __future__ import annotations

import pytest
import torch

from fxprune.scoring import score
from fxprune.scoring.fpgm import distances
from tests.models.smooth import Attention
from tests.support.formulas import assert_same, built, ranked
from tests.support.pruning import prepared
from tests.support.tensors import random


@pytest.mark.parametrize("name", ["conv", "mlp"])
def test_fpgm_is_the_sum_of_distances(name: str) -> None:
    coupling, model, _, _ = built(name)
    expected = {}
    for layer in ("a", "b"):
        filters = getattr(model, layer).weight.detach()
        sums = [sum(float((f - g).square().sum() ** 0.5) for g in filters) for f in filters]
        expected[layer] = torch.tensor(sums, dtype=torch.float64)
    assert_same(score(coupling, [], "fpgm"), ranked(coupling, expected, read=True))


def test_fpgm_compares_units_with_several_rows() -> None:
    coupling = prepared(Attention(), (random(2, 5, 8),))[1]
    weight = dict(coupling.captured.model.named_parameters())["qkv.weight"].detach()
    heads = weight.unflatten(0, (3, 2, 4)).transpose(0, 1).flatten(1)  # q, k and v of each of two heads
    name = next(g.name for g in coupling.groups if g.kind == "head")
    found = score(coupling, [], "fpgm")[name]
    assert found[0] > 0
    both = distances(heads, 1 << 20)
    torch.testing.assert_close(both, (heads[0] - heads[1]).norm().expand(2))
    with torch.no_grad():
        weight.unflatten(0, (3, 2, 4))[:, 1] = weight.unflatten(0, (3, 2, 4))[:, 0].clone()
    assert torch.equal(score(coupling, [], "fpgm")[name], torch.zeros(2, dtype=torch.float64))


def test_fpgm_takes_filters_that_most_others_equal_first() -> None:
    coupling, model, _, _ = built("conv")
    with torch.no_grad():
        model.a.weight[:] = random(*model.a.weight.shape)
        model.a.weight[[1, 4, 5]] = model.a.weight[0].clone()
    assert set(score(coupling, [], "fpgm")["a"].argsort()[:4].tolist()) == {0, 1, 4, 5}


@pytest.mark.parametrize("limit", [1, 1 << 12, 1 << 30])
def test_distances_do_not_depend_on_the_memory_limit(limit: int) -> None:
    filters = random(30, 20) + 100
    expected = (filters[:, None] - filters).norm(dim=2).sum(1)
    torch.testing.assert_close(distances(filters, limit), expected, rtol=1e-5, atol=0)

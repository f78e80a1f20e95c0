"""Magnitudes: norms of rows, shared among the layers that make a unit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxprune.scoring import score
from fxprune.scoring.magnitude import Magnitude
from tests.models.fn import Fn
from tests.support.formulas import order, two_layers
from tests.support.pruning import prepared


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_magnitude_ranks_a_layer_by_the_norm_of_its_rows(p: int, dtype: torch.dtype) -> None:
    coupling, model = two_layers()
    model.to(dtype)
    (found,) = score(coupling, [], Magnitude(p=p)).values()
    assert order(found) == order(model.a.weight.detach().double().norm(p, dim=1))


def test_magnitude_sums_the_shares_of_all_layers_that_make_a_unit() -> None:
    model = Fn(lambda m, x: m.c(m.a(x) + m.b(x)), a=nn.Linear(5, 4), b=nn.Linear(5, 4), c=nn.Linear(4, 2))
    coupling = prepared(model, (torch.randn(6, 5, dtype=torch.float64),))[1]
    norms = [layer.weight.detach().norm(dim=1) for layer in (model.a, model.b)]
    (found,) = score(coupling, [], "l2").values()
    assert order(found) == order(sum(n / n.sum() for n in norms))


def test_a_zero_layer_scores_zero_and_not_nan() -> None:
    coupling, model = two_layers()
    nn.init.zeros_(model.a.weight)
    (found,) = score(coupling, [], "l1").values()
    assert torch.equal(found, torch.zeros_like(found))

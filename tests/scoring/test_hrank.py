"""HRank: the mean rank of a filter's maps."""

from __future__ import annotations

import pytest
import torch

from fxprune.scoring import score
from tests.models.smooth import Attention
from tests.support.formulas import assert_same, built, inputs, ranked
from tests.support.pruning import prepared
from tests.support.tensors import random


@pytest.mark.parametrize("name", ["conv", "mlp"])
def test_hrank_is_the_mean_rank_of_the_maps(name: str) -> None:
    coupling, model, x, y = built(name)
    a = model.first(x).detach()
    expected = {}
    for layer, value in (("a", a), ("b", model.second(a).detach())):
        maps = value if value.dim() > 2 else value[:, :, None, None]
        ranks = [[int(torch.linalg.matrix_rank(m)) for m in sample] for sample in maps]
        expected[layer] = torch.tensor(ranks, dtype=torch.float64).mean(0)
    found = score(coupling, inputs(x, y), "hrank")
    assert_same(found, ranked(coupling, expected, read=False))
    assert found["a"].argmin() == 2 and found["a"][2] == 0
    assert len(set(expected["b"].tolist())) > 1


def test_hrank_of_a_head_is_that_of_tokens_by_dimensions() -> None:
    x = random(3, 5, 8)
    coupling = prepared(Attention(), (x,))[1]
    name = next(g.name for g in coupling.groups if g.kind == "head")
    weight = dict(coupling.captured.model.named_parameters())["qkv.weight"]
    bias = dict(coupling.captured.model.named_parameters())["qkv.bias"]
    with torch.no_grad():  # the second head's values are two numbers a token, each given twice
        weight[22:24], bias[22:24] = weight[20:22].clone(), bias[20:22].clone()
    found = score(coupling, [(x,)], "hrank")[name]
    torch.testing.assert_close(found[1] / found[0], torch.tensor(2 / 6, dtype=torch.float64))  # LAMP: 2/6, 4/4

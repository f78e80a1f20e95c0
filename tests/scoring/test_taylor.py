"""Taylor: the mean of activation times gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fxprune._base.errors import CalibrationError
from fxprune.scoring import score
from fxprune.scoring.taylor import Taylor
from tests.support.formulas import assert_same, built, inputs


@pytest.mark.parametrize("name", ["conv", "mlp"])
def test_taylor_is_the_mean_of_activation_times_gradient(name: str) -> None:
    coupling, model, x, y = built(name)
    a = model.first(x)
    b = model.second(a)
    loss = F.cross_entropy(model.last(b), y, reduction="sum")
    expected = {}
    for layer, value in (("a", a), ("b", b)):
        (gradient,) = torch.autograd.grad(loss, value, retain_graph=True)
        change = (value * gradient).flatten(2).sum(2) if value.dim() > 2 else value * gradient
        expected[layer] = change.abs().mean(0)
    found = score(coupling, inputs(x, y), Taylor(normalise=False))
    assert_same(found, expected)
    assert found["a"].argmin() == 2 and found["a"][2] == 0
    assert_same(score(coupling, inputs(x, y), "taylor"), {k: v / v.norm() for k, v in expected.items()})


def test_taylor_needs_targets() -> None:
    coupling, _, x, _ = built("mlp")
    with pytest.raises(CalibrationError, match="'taylor' needs targets"):
        score(coupling, [(x,)], "taylor")

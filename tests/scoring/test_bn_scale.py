"""The scales of batch norms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxprune._base.errors import ScorerError
from fxprune.scoring import score
from tests.models.fn import Fn
from tests.support.formulas import assert_same
from tests.support.pruning import linear_coupling, prepared
from tests.support.tensors import random


def test_bn_scale_is_the_mean_of_the_scales() -> None:
    model = Fn(
        lambda m, x: m.c((m.na(m.a(x)) + m.nb(m.b(x))).relu()) + m.e(m.d(x)),
        a=nn.Conv2d(3, 4, 1),
        na=nn.BatchNorm2d(4),
        b=nn.Conv2d(3, 4, 1),
        nb=nn.BatchNorm2d(4),
        c=nn.Conv2d(4, 2, 1),
        d=nn.Conv2d(3, 5, 1),
        e=nn.Conv2d(5, 2, 1),
    )
    coupling = prepared(model, (random(2, 3, 4, 4),))[1]
    with torch.no_grad():
        model.na.weight[1] *= -1
    mean = (model.na.weight.abs() + model.nb.weight.abs()).detach() / 2
    assert_same(score(coupling, [], "bn_scale"), {"a": mean, "d": mean.max().expand(5)})


def test_bn_scale_without_batch_norm() -> None:
    with pytest.raises(ScorerError, match=r"expects batch norms .* use another method"):
        score(linear_coupling(4, 6, 2), [], "bn_scale")

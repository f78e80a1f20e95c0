"""A plan applied to a model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxprune
from tests.support.compiling import compile_small, mlp


def test_a_plan_applies_to_a_wrapped_model() -> None:
    plan = fxprune.report(compile_small(mlp())).plan
    assert fxprune.apply(nn.DataParallel(mlp()), plan)(torch.randn(2, 8)).shape == (2, 4)
    with pytest.raises(fxprune.PlanError, match=r"expected a fxprune\.Plan, got str"):
        fxprune.apply(mlp(), "plan")

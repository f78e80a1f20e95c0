"""Pooling and interpolation: space stays, channels pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models.ops.spatial import FUNCTIONS, SHAPES, Many
from tests.support.marks import but_slow
from tests.support.pruning import check, groups_of, prepared


@pytest.mark.parametrize("d", but_slow([1, 2, 3], quick=(1,)))
def test_channels_pass(d: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(SHAPES[d], dtype=torch.float64)
    _, coupling = prepared(Many(FUNCTIONS[d], d), (x,))
    passed = [
        f"6 channel: makers.{i}.weight[0] makers.{i}.bias[0] readers.{i}.weight[1]" for i in range(len(FUNCTIONS[d]))
    ]
    assert sorted(groups_of(coupling)) == sorted(passed)
    check(coupling, (x,))


@pytest.mark.parametrize("pool", [lambda x: F.max_pool1d(x, 2), lambda x: F.interpolate(x, scale_factor=2.0)])
def test_what_is_pooled_as_space_stays(pool: Callable[[Tensor], Tensor]) -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU())
    x = torch.randn(3, 4, 5, dtype=torch.float64)

    class Over(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = model

        def forward(self, x: Tensor) -> Tensor:
            return pool(self.a(x)).sum((1, 2))

    _, coupling = prepared(Over(), (x,))
    assert coupling.groups == ()
    assert "the spatial axis" in coupling.explain("a.0")

"""Convolutions: 1d to 3d, grouped, depthwise, transposed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models.fn import Fn
from tests.models.ops.case import Case
from tests.models.ops.conv import CASES
from tests.support.compiling import couple_fn
from tests.support.marks import but_slow
from tests.support.pruning import certify, check, check_case, groups_of, prepared, removal
from tests.support.tensors import random


@pytest.mark.parametrize("case", but_slow(CASES, CASES[::3]), ids=lambda c: c.name)
def test_rule(case: Case) -> None:
    check_case(case)


def test_a_kernel_of_each_sample_by_as_many_groups_as_samples() -> None:
    """Dynamic convolution folds the batch into the channels; its number of groups is known only at run time."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y, (b, _, h, w) = m.make(x), x.shape
        kernels = (m.route(x.mean((2, 3))).softmax(1) @ m.kernels.flatten(1)).reshape(b * 6, 8, 3, 3)
        z = F.conv2d(y.reshape(1, b * 8, h, w), kernels, padding=1, groups=b)
        return m.head(z.reshape(b, 6, h, w))

    kernels = nn.Parameter(torch.randn(4, 6, 8, 3, 3))
    model = Fn(forward, make=nn.Conv2d(3, 8, 1), route=nn.Linear(3, 4), kernels=kernels, head=nn.Conv2d(6, 2, 1))
    args = (torch.randn(3, 3, 5, 5, dtype=torch.float64),)
    coupling = prepared(model, args)[1]
    assert not coupling.unsupported
    assert sorted(groups_of(coupling)) == [
        "4 expert: kernels[0] route.weight[0] route.bias[0]",
        "6 channel: kernels[1] head.weight[1]",
        "8 channel: kernels[2] make.weight[0] make.bias[0]",
    ]
    check(coupling, args)


def test_a_transposed_convolution_by_as_many_groups_as_samples_stays() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y, (b, _, h, w) = m.make(x), x.shape
        kernels = (m.route(x.mean((2, 3))) @ m.kernels.flatten(1)).reshape(b * 8, 6, 1, 1)
        return m.head(F.conv_transpose2d(y.reshape(1, b * 8, h, w), kernels, groups=b).reshape(b, 6, h, w))

    kernels = nn.Parameter(torch.randn(4, 8, 6, 1, 1))
    model = Fn(forward, make=nn.Conv2d(3, 8, 1), route=nn.Linear(3, 4), kernels=kernels, head=nn.Conv2d(6, 2, 1))
    coupling = prepared(model, (torch.randn(3, 3, 5, 5, dtype=torch.float64),))[1]
    assert "conv_transpose2d" in coupling.unsupported[0][0]
    assert [group.name for group in coupling.groups] == ["route"]


def test_standardised_weights_are_plain_and_lose_rows_and_columns() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        w = m.a.weight
        w = F.batch_norm(w.reshape(1, len(w), -1), None, None, training=True).reshape_as(w)
        return m.b(F.conv2d(m.p(x), w, m.a.bias).relu())

    args = (random(3, 3, 6, 6),)
    coupling = couple_fn(forward, *args, p=nn.Conv2d(3, 6, 1), a=nn.Conv2d(6, 8, 3), b=nn.Conv2d(8, 2, 1))
    assert "a.weight" in coupling.captured.folded and len(coupling.units) == 14
    assert certify(coupling, args, removal(coupling, 0, 0.5)).verified is True

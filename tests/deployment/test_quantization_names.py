"""How torchao's names for operators are found: by the names of layers."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import nn

from fxprune.deployment.quantization import _source

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("target", "source"),
    [
        (aten.conv2d.default, nn.Conv2d),
        (aten.linear.default, nn.Linear),
        (aten.add.Tensor, operator.add),
        (aten.add_.Tensor, operator.add),
        (aten.relu.default, nn.ReLU),
        (aten.relu_.default, nn.ReLU),
        (aten.hardtanh.default, nn.Hardtanh),
        (aten.hardswish_.default, nn.Hardswish),
        (aten.silu.default, nn.SiLU),
        (aten.leaky_relu.default, nn.LeakyReLU),
        (aten.conv2d.padding, None),  # no quantizer takes it for a convolution
        (aten.add.Scalar, None),
        (aten.view.default, None),
        (operator.getitem, None),
        ("placeholder", None),
    ],
)
def test_the_name_of_an_operator(target: Any, source: Any) -> None:
    assert _source(target) is source

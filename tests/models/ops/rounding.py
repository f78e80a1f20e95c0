"""Weights that are rounded as they will be, in tiny models."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models.fn import Fn
from tests.models.ops.case import Case

A = torch.ops.aten
ONE = ["8 channel: w[0] b.weight[1]"]
EACH = ["8 channel: w[0] b.weight[1] scale[0]"]


def _rounded(function: Callable[[Fn], Tensor], scales: int) -> Fn:
    """A convolution whose weight is rounded, in float32, and one that is not."""
    return Fn(
        lambda m, x: m.b(F.conv2d(x, function(m).to(x.dtype)).relu()),
        w=nn.Parameter(torch.randn(8, 3, 3, 3)),
        scale=torch.linspace(0.05, 0.1, scales),
        zero=torch.arange(scales, dtype=torch.int32),
        b=nn.Conv2d(8, 2, 1),
    )


SHARED = {
    "one scale": lambda m: torch.fake_quantize_per_tensor_affine(m.w.float(), 0.1, 3, -128, 127),
    "one scale in a tensor": lambda m: torch.fake_quantize_per_tensor_affine(
        m.w.float(), m.scale.float(), m.zero, -128, 127
    ),
    "one scale, with a mask": lambda m: A.fake_quantize_per_tensor_affine_cachemask.default(
        m.w.float(), 0.1, 3, -128, 127
    )[0],
    "one scale that learns": lambda m: A._fake_quantize_learnable_per_tensor_affine.default(
        m.w.float(), m.scale.float(), m.zero.float(), -128, 127
    ),
}

OWN = {
    "a scale for each channel": lambda m: torch.fake_quantize_per_channel_affine(
        m.w.float(), m.scale.float(), m.zero, 0, -128, 127
    ),
    "scales, with a mask": lambda m: A.fake_quantize_per_channel_affine_cachemask.default(
        m.w.float(), m.scale.float(), m.zero, 0, -128, 127
    )[0],
}

CASES = [
    *(Case(name, lambda f=function: _rounded(f, 1), [(3, 3, 5, 4)], ONE) for name, function in SHARED.items()),  # type: ignore[misc]
    *(Case(name, lambda f=function: _rounded(f, 8), [(3, 3, 5, 4)], EACH) for name, function in OWN.items()),  # type: ignore[misc]
]

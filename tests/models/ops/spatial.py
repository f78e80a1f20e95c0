"""Pooling and interpolation in tiny models."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

A = torch.ops.aten
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SHAPES = {1: (3, 3, 8), 2: (3, 3, 8, 6), 3: (3, 3, 4, 6, 4)}


def _both(d: int) -> list[Callable[[Tensor], Tensor]]:
    """Returns the ops of every dimensionality."""
    half = {1: [4], 2: [4, 3], 3: [2, 3, 2]}[d]
    twice = [2 * n for n in SHAPES[d][2:]]
    nearest, exact = getattr(A, f"upsample_nearest{d}d"), getattr(A, f"_upsample_nearest_exact{d}d")
    smooth = getattr(A, {1: "upsample_linear1d", 2: "upsample_bilinear2d", 3: "upsample_trilinear3d"}[d])
    return [
        lambda x: getattr(F, f"avg_pool{d}d")(x, 2),
        lambda x: getattr(F, f"max_pool{d}d")(x, 2),
        lambda x: getattr(F, f"adaptive_avg_pool{d}d")(x, half),
        lambda x: getattr(A, f"max_pool{d}d_with_indices").default(x, [2] * d, [2] * d)[0],
        lambda x: getattr(F, f"adaptive_max_pool{d}d")(x, half),
        lambda x: nearest.default(x, twice),
        lambda x: nearest.vec(x, None, [2.0] * d),
        lambda x: exact.default(x, twice),
        lambda x: exact.vec(x, None, [2.0] * d),
        lambda x: smooth.default(x, twice, False),
        lambda x: smooth.vec(x, None, True, [2.0] * d),
    ]


FLAT: list[Callable[[Tensor], Tensor]] = [
    lambda x: A.upsample_bicubic2d.default(x, [16, 12], False),
    lambda x: A.upsample_bicubic2d.vec(x, None, False, [2.0, 2.0]),
    lambda x: A._upsample_bilinear2d_aa.default(x, [4, 3], False),
    lambda x: A._upsample_bilinear2d_aa.vec(x, None, False, [0.5, 0.5]),
    lambda x: A._upsample_bicubic2d_aa.default(x, [4, 3], False),
    lambda x: A._upsample_bicubic2d_aa.vec(x, None, False, [0.5, 0.5]),
    lambda x: A._adaptive_avg_pool2d.default(x, [4, 3]),
    lambda x: F.grid_sample(x, x.new_ones(1, 4, 3, 2).cumsum(1).sin().expand(len(x), 4, 3, 2), align_corners=False),
]

SOLID: list[Callable[[Tensor], Tensor]] = [lambda x: A._adaptive_avg_pool3d.default(x, [2, 3, 2])]


class Many(nn.Module):
    """Each function between convolutions of its own, in one graph."""

    def __init__(self, functions: list[Callable[[Tensor], Tensor]], d: int) -> None:
        super().__init__()
        self.functions = functions
        self.makers = nn.ModuleList(CONVS[d](3, 6, 1) for _ in functions)
        self.readers = nn.ModuleList(CONVS[d](6, 2, 1) for _ in functions)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        rows = zip(self.functions, self.makers, self.readers, strict=True)
        return tuple(reader(function(maker(x))) for function, maker, reader in rows)


FUNCTIONS = {1: _both(1), 2: _both(2) + FLAT, 3: _both(3) + SOLID}

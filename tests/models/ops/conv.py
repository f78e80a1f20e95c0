"""Convolutions in tiny models."""

from __future__ import annotations

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from tests.models.fn import Fn
from tests.models.ops.case import Case


def _chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def _closed(conv: str, dims: int, *, groups: int = 1, padding: object = 1) -> nn.Module:
    """A convolution between two of its kind: its channels are made and read by parameters."""
    plain = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    middle = getattr(nn, conv)(8, 12, 3, padding=padding, groups=groups)
    return _chain(plain(3, 8, 1), middle, nn.ReLU(), plain(12, 2, 1))


GROUPED = [
    "2 channel: 0.weight[0]x4 0.bias[0]x4 1.weight[0]x6 1.bias[0]x6 3.weight[1]x6",
    "4 channel: 0.weight[0]x2 0.bias[0]x2 1.weight[1]",
    "6 channel: 1.weight[0]x2 1.bias[0]x2 3.weight[1]x2",
]

PLAIN = ["8 channel: 0.weight[0] 0.bias[0] 1.weight[1]", "12 channel: 1.weight[0] 1.bias[0] 3.weight[1]"]
TRANSPOSED = ["8 channel: 0.weight[0] 0.bias[0] 1.weight[0]", "12 channel: 1.weight[1] 1.bias[0] 3.weight[1]"]

GROUPED_TRANSPOSED = [
    "2 channel: 0.weight[0]x4 0.bias[0]x4 1.weight[0]x4 1.bias[0]x6 3.weight[1]x6",
    "4 channel: 0.weight[0]x2 0.bias[0]x2 1.weight[0]x2",
    "6 channel: 1.weight[1] 1.bias[0]x2 3.weight[1]x2",
]

IMAGE = {1: (3, 3, 7), 2: (3, 3, 7, 6), 3: (3, 3, 5, 4, 3)}


def _deformable(groups: int = 1, parts: int = 1, masked: bool = False, bias: bool = True) -> nn.Module:
    """A deformable convolution; what moves its taps is made of the input."""

    def forward(m: Fn, x: torch.Tensor) -> torch.Tensor:
        mask = m.weigh(x).sigmoid() if masked else None
        return m.b(m.bend(m.a(x).relu(), m.move(x), mask).relu())  # type: ignore[no-any-return]

    bend = torchvision.ops.DeformConv2d(8, 12, 3, padding=1, groups=groups, bias=bias)
    weigh = {"weigh": nn.Conv2d(3, 9 * parts, 1)} if masked else {}
    return Fn(
        forward, a=nn.Conv2d(3, 8, 1), move=nn.Conv2d(3, 18 * parts, 1), bend=bend, b=nn.Conv2d(12, 2, 1), **weigh
    )


DEFORMED = ["8 channel: a.weight[0] a.bias[0] bend.weight[1]", "12 channel: bend.weight[0] bend.bias[0] b.weight[1]"]

CASES = [
    Case("deformable", _deformable, [IMAGE[2]], DEFORMED),
    Case(
        "deformable, no bias",
        lambda: _deformable(bias=False),
        [IMAGE[2]],
        [DEFORMED[0], "12 channel: bend.weight[0] b.weight[1]"],
    ),
    Case(
        "deformable, masked, each half moved by itself",
        lambda: _deformable(parts=2, masked=True),
        [IMAGE[2]],
        ["4 channel: a.weight[0]x2 a.bias[0]x2 bend.weight[1]x2", DEFORMED[1]],
    ),
    Case(
        "deformable, groups",
        lambda: _deformable(groups=2),
        [IMAGE[2]],
        [
            "2 channel: a.weight[0]x4 a.bias[0]x4 bend.weight[0]x6 bend.bias[0]x6 b.weight[1]x6",
            "4 channel: a.weight[0]x2 a.bias[0]x2 bend.weight[1]",
            "6 channel: bend.weight[0]x2 bend.bias[0]x2 b.weight[1]x2",
        ],
    ),
    Case(
        "deformable, groups, each half moved by itself",
        lambda: _deformable(groups=2, parts=2),
        [IMAGE[2]],
        [
            "4 channel: a.weight[0]x2 a.bias[0]x2 bend.weight[1]",
            "6 channel: bend.weight[0]x2 bend.bias[0]x2 b.weight[1]x2",
        ],
    ),
    *(
        Case(
            f"conv{n}d{'' if groups == 1 else ', groups'}",
            lambda n=n, g=groups: _closed(f"Conv{n}d", n, groups=g),
            [IMAGE[n]],
            PLAIN if groups == 1 else GROUPED,
        )
        for n in (1, 2, 3)
        for groups in (1, 2)
    ),
    *(
        Case(
            f"conv{n}d, padding same, groups",
            lambda n=n: _closed(f"Conv{n}d", n, groups=2, padding="same"),
            [IMAGE[n]],
            GROUPED,
        )
        for n in (1, 2, 3)
    ),
    *(
        Case(
            f"conv_transpose{n}d{'' if groups == 1 else ', groups'}",
            lambda n=n, g=groups: _closed(f"ConvTranspose{n}d", n, groups=g),
            [IMAGE[n]],
            TRANSPOSED if groups == 1 else GROUPED_TRANSPOSED,
        )
        for n in (1, 2, 3)
        for groups in (1, 2)
    ),
    Case(
        "depthwise",
        lambda: _chain(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6(), nn.Conv2d(8, 2, 1)),
        [IMAGE[2]],
        ["8 channel: 0.weight[0] 0.bias[0] 1.weight[0] 1.bias[0] 3.weight[1]"],
    ),
    Case(
        "depthwise with a multiplier",
        lambda: _chain(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=4), nn.ReLU6(), nn.Conv2d(8, 2, 1)),
        [IMAGE[2]],
        [
            "4 channel: 0.weight[0] 0.bias[0] 1.weight[0]x2 1.bias[0]x2 3.weight[1]x2",
            "2 channel: 1.weight[0]x4 1.bias[0]x4 3.weight[1]x4",
        ],
    ),
    Case(
        "depthwise, transposed",
        lambda: _chain(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 8, 3, groups=4), nn.ReLU6(), nn.Conv2d(8, 2, 1)),
        [IMAGE[2]],
        [
            "4 channel: 0.weight[0] 0.bias[0] 1.weight[0] 1.bias[0]x2 3.weight[1]x2",
            "2 channel: 1.weight[1] 1.bias[0]x4 3.weight[1]x4",
        ],
    ),
    Case(
        "grouped after grouped, other groups",
        lambda: _chain(
            nn.Conv1d(3, 12, 1),
            nn.Conv1d(12, 12, 1, groups=2),
            nn.ReLU(),
            nn.Conv1d(12, 12, 1, groups=3),
            nn.ReLU(),
            nn.Conv1d(12, 2, 1),
        ),
        [IMAGE[1]],
        [
            "6 channel: 0.weight[0]x2 0.bias[0]x2 1.weight[1]",
            "2 channel: 1.weight[0]x6 1.bias[0]x6 3.weight[1]x2",
            "4 channel: 3.weight[0]x3 3.bias[0]x3 5.weight[1]x3",
        ],
    ),
    Case(
        "grouped on the input",
        lambda: _chain(nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 2, 1)),
        [(3, 4, 7, 6)],
        ["4 channel: 0.weight[0]x2 0.bias[0]x2 2.weight[1]x2"],
    ),
    Case(
        "standardised weight",
        lambda: Fn(
            lambda m, x: m.b(
                F.conv2d(
                    m.a(x), F.batch_norm(m.w.reshape(1, 6, -1), None, None, m.g, training=True).reshape(6, 8, 3, 3)
                )
            ),
            a=nn.Conv2d(3, 8, 1),
            w=nn.Parameter(torch.randn(6, 8, 3, 3)),
            g=nn.Parameter(torch.ones(6)),
            b=nn.Conv2d(6, 2, 1),
        ),
        [IMAGE[2]],
        ["6 channel: w[0] b.weight[1]", "8 channel: w[1] a.weight[0] a.bias[0]"],
    ),
    Case(
        "without a batch",
        lambda: Fn(lambda m, x: m.b(m.a(x.sum(0))) * x[:, :1], a=nn.Conv2d(3, 8, 3, padding=1), b=nn.Conv2d(8, 1, 1)),
        [IMAGE[2]],
        ["8 channel: a.weight[0] a.bias[0] b.weight[1]"],
    ),
]

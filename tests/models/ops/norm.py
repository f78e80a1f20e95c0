"""Norms in tiny models."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from tests.models.fn import Fn
from tests.models.ops.case import Case


def _image(norm: nn.Module, channels: int = 8) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, channels, 1), norm, nn.ReLU(), nn.Conv2d(channels, 2, 1))


def _tokens(norm: nn.Module, width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(5, width), norm, nn.GELU(), nn.Linear(width, 2))


class WeightNormed(nn.Module):
    """A linear layer whose forward scales the columns of its weight; or a product with such a weight."""

    def __init__(self, inputs: int, outputs: int, product: bool = False) -> None:
        super().__init__()
        self.product = product
        self.v, self.g = nn.Parameter(torch.randn(outputs, inputs)), nn.Parameter(torch.rand(1, inputs))

    def forward(self, x: Tensor) -> Tensor:
        weight = torch._weight_norm(self.v, self.g, 1)
        return x @ weight.T if self.product else F.linear(x, weight)


class SpectralNormed(nn.Module):
    """A linear layer whose forward divides its weight by an estimate of its largest singular value."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.w, self.u, self.v = (nn.Parameter(torch.randn(*s)) for s in ((outputs, inputs), (outputs,), (inputs,)))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.w / torch.vdot(self.u, torch.mv(self.w, self.v)))


X, T = (3, 3, 7, 6), (3, 4, 5)
NORM = "8 channel: 0.weight[0] 0.bias[0] 1.weight[0] 1.bias[0]"

CASES = [
    Case(
        "batch norm", lambda: _image(nn.BatchNorm2d(8)), [X], [f"{NORM} 3.weight[1] 1.running_mean[0] 1.running_var[0]"]
    ),
    Case(
        "batch norm of features",
        lambda: _tokens(nn.Sequential(nn.Flatten(0, 1), nn.BatchNorm1d(8))),
        [T],
        [
            "8 channel: 0.weight[0] 0.bias[0] 1.1.weight[0] 1.1.bias[0] 3.weight[1] 1.1.running_mean[0] 1.1.running_var[0]"
        ],
    ),
    Case(
        "batch norm without parameters",
        lambda: _image(nn.BatchNorm2d(8, affine=False)),
        [X],
        ["8 channel: 0.weight[0] 0.bias[0] 3.weight[1] 1.running_mean[0] 1.running_var[0]"],
    ),
    Case(
        "batch norm with the batch's statistics",
        lambda: _image(nn.BatchNorm2d(8, track_running_stats=False)),
        [X],
        [f"{NORM} 3.weight[1]"],
    ),
    Case("instance norm", lambda: _image(nn.InstanceNorm2d(8, affine=True)), [X], [f"{NORM} 3.weight[1]"]),
    Case(
        "instance norm with running statistics",
        lambda: _image(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
        [X],
        [f"{NORM} 3.weight[1] 1.running_mean[0] 1.running_var[0]"],
    ),
    Case(
        "instance norm over channels as space",
        lambda: Fn(lambda m, x: m.b(F.instance_norm(m.a(x))), a=nn.Linear(5, 8), b=nn.Linear(8, 2)),
        [T],
        ["8 channel: a.weight[0] a.bias[0] b.weight[1]"],
        statistic=True,
    ),
    Case("layer norm", lambda: _tokens(nn.LayerNorm(8)), [T], [f"{NORM} 3.weight[1]"], statistic=True),
    Case(
        "layer norm without parameters",
        lambda: _tokens(nn.LayerNorm(8, elementwise_affine=False)),
        [T],
        ["8 channel: 0.weight[0] 0.bias[0] 3.weight[1]"],
        statistic=True,
    ),
    Case(
        "layer norm over two dimensions",
        lambda: nn.Sequential(nn.Linear(5, 8), nn.LayerNorm((4, 8)), nn.ReLU(), nn.Linear(8, 2)),
        [T],
        ["8 channel: 0.weight[0] 0.bias[0] 1.weight[1] 1.bias[1] 3.weight[1]"],
        statistic=True,
    ),
    Case(
        "layer norm over heads and their dimensions",
        lambda: nn.Sequential(
            nn.Linear(5, 8), nn.Unflatten(2, (2, 4)), nn.LayerNorm((2, 4)), nn.Flatten(2), nn.Linear(8, 2)
        ),
        [T],
        [
            "2 channel: 0.weight[0]x4 0.bias[0]x4 2.weight[0] 2.bias[0] 4.weight[1]x4",
            "4 channel: 0.weight[0]x2 0.bias[0]x2 2.weight[1] 2.bias[1] 4.weight[1]x2",
        ],
        statistic=True,
    ),
    Case(
        "RMS norm",
        lambda: _tokens(nn.RMSNorm(8)),
        [T],
        ["8 channel: 0.weight[0] 0.bias[0] 1.weight[0] 3.weight[1]"],
        statistic=True,
    ),
    Case(
        "group norm",
        lambda: _image(nn.GroupNorm(2, 8)),
        [X],
        [
            "2 channel: 0.weight[0]x4 0.bias[0]x4 1.weight[0]x4 1.bias[0]x4 3.weight[1]x4",
            "4 channel: 0.weight[0]x2 0.bias[0]x2 1.weight[0]x2 1.bias[0]x2 3.weight[1]x2",
        ],
        statistic=True,
    ),
    Case(
        "group norm of one group",
        lambda: _image(nn.GroupNorm(1, 8)),
        [X],
        ["8 channel: 0.weight[0] 0.bias[0] 1.weight[0] 1.bias[0] 3.weight[1]"],
        statistic=True,
    ),
    Case(
        "group norm of single channels",
        lambda: _image(nn.GroupNorm(8, 8, affine=False)),
        [X],
        ["8 channel: 0.weight[0] 0.bias[0] 3.weight[1]"],
    ),
    Case(
        "group norm after a grouped convolution",
        lambda: _image(nn.Sequential(nn.Conv2d(8, 8, 3, groups=4), nn.GroupNorm(2, 8))),
        [X],
        [
            "2 channel: 0.weight[0]x4 0.bias[0]x4 1.0.weight[1]",
            "2 channel: 1.0.weight[0]x4 1.0.bias[0]x4 1.1.weight[0]x4 1.1.bias[0]x4 3.weight[1]x4",
            "2 channel: 0.weight[0]x4 0.bias[0]x4 1.0.weight[0]x4 1.0.bias[0]x4 1.1.weight[0]x4 1.1.bias[0]x4 3.weight[1]x4",
            "2 channel: 0.weight[0]x4 0.bias[0]x4 1.0.weight[0]x4 1.0.bias[0]x4 1.1.weight[0]x4 1.1.bias[0]x4 3.weight[1]x4",
        ],
        statistic=True,
    ),
    Case(
        "RMS norm by hand",
        lambda: Fn(
            lambda m, x: m.b((y := m.a(x)) * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6) * m.w),
            a=nn.Linear(5, 8),
            w=nn.Parameter(torch.ones(8)),
            b=nn.Linear(8, 2),
        ),
        [T],
        ["8 channel: w[0] a.weight[0] a.bias[0] b.weight[1]"],
        statistic=True,
    ),
    Case(
        "weight norm",
        lambda: _image(weight_norm(nn.Conv2d(8, 8, 3))),
        [X],
        ["8 channel: 0.weight[0] 0.bias[0] 1.weight[1]", "8 channel: 1.weight[0] 1.bias[0] 3.weight[1]"],
    ),
    Case(
        "weight norm by input channel in a forward of one's own",
        lambda: _tokens(WeightNormed(8, 8)),
        [T],
        ["8 channel: 0.weight[0] 0.bias[0] 1.v[1]", "8 channel: 1.v[0] 3.weight[1]"],
    ),
    Case(
        "weight norm by input channel in front of a product",
        lambda: _tokens(WeightNormed(8, 8, product=True)),
        [T],
        ["8 channel: 0.weight[0] 0.bias[0] 1.v[1] 1.g[1]", "8 channel: 1.v[0] 3.weight[1]"],
        statistic=True,
    ),
    Case(
        "spectral norm",
        lambda: _image(spectral_norm(nn.Conv2d(8, 8, 3))),
        [X],
        ["8 channel: 0.weight[0] 0.bias[0] 1.weight[1]", "8 channel: 1.weight[0] 1.bias[0] 3.weight[1]"],
    ),
    Case(
        "spectral norm in a forward of one's own",
        lambda: _tokens(SpectralNormed(8, 8)),
        [T],
        ["8 channel: 0.weight[0] 0.bias[0] 1.w[1]", "8 channel: 1.w[0] 3.weight[1]"],
    ),
]

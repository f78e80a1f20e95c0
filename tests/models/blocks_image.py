"""Blocks that work on images [batch, channels, height, width]; any block may follow any other.

A block is plain data. ``make`` adds its layers to a module, given the shape that comes in; ``run`` is its forward
pass; ``expected`` says how many units each inner layer must offer for removal, whatever stands around the block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

Shape = tuple[int, ...]
ACTS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "none": lambda x: x,
}


@dataclass(frozen=True)
class Spec(ABC):
    """The base of all blocks."""

    def make(self, m: Block, shape: Shape) -> None:  # noqa: B027  (many blocks have no layers)
        """Adds layers to the module."""

    @abstractmethod
    def run(self, m: Block, x: Tensor) -> Tensor:
        """Returns the block's output."""

    def expected(self, m: Block) -> dict[str, int]:
        """Returns, for inner layers, how many units must be on their output axis."""
        return {}

    def within(self) -> Iterator[Spec]:
        """Yields this block and those inside it."""
        yield self
        for item in fields(self):
            value = getattr(self, item.name)
            for inner in value if isinstance(value, tuple) else (value,):
                if isinstance(inner, Spec):
                    yield from inner.within()

    def kinds(self) -> Iterator[str]:
        """Yields the names of this block and of those inside it."""
        return (type(block).__name__ for block in self.within())

    def zeros(self) -> bool:
        """Returns whether a unit that is gone is to this block as if all weights that make it and read it were zero.

        It is not where the block looks at several channels as a whole, as a softmax over them does.
        """
        return True

    @property
    def rounding(self) -> float:
        """Differences that are rounding, relative to the largest value."""
        return 1e-8


class Block(nn.Module):
    """A block as a module."""

    def __init__(self, spec: Spec, shape: Shape) -> None:
        super().__init__()
        self.spec = spec
        spec.make(self, shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.spec.run(self, x)


class Chain(nn.Module):
    """Blocks one after the other; each is made for the shape that its predecessor gives."""

    def __init__(self, specs: tuple[Spec, ...], shape: Shape) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for spec in specs:
            self.blocks.append(Block(spec, shape))
            shape = shape_after(self.blocks[-1], shape)
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def shape_after(module: nn.Module, shape: Shape) -> Shape:
    """Returns the shape of what an evaluation-mode pass gives."""
    module.eval()
    with torch.no_grad():
        return tuple(module(torch.zeros(shape)).shape)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def norm2d(kind: str, channels: int) -> nn.Module:
    made: dict[str, Any] = {
        "none": nn.Identity,
        "batch": lambda: nn.BatchNorm2d(channels),
        "plain": lambda: nn.BatchNorm2d(channels, affine=False),
        "group": lambda: nn.GroupNorm(gcd(channels, 4), channels),
        "one": lambda: nn.GroupNorm(1, channels),
        "instance": lambda: nn.InstanceNorm2d(channels, affine=True),
        "tracked": lambda: nn.InstanceNorm2d(channels, affine=True, track_running_stats=True),
        "layer": lambda: LayerNorm2d(channels),
    }
    return made[kind]()


NORMS = ("none", "batch", "plain", "group", "one", "instance", "tracked", "layer")


@dataclass(frozen=True)
class Conv(Spec):
    out: int
    kernel: int = 3
    groups: int = 1
    norm: str = "batch"
    act: str = "relu"
    bias: bool = True
    transposed: bool = False

    def make(self, m: Block, shape: Shape) -> None:
        layer = nn.ConvTranspose2d if self.transposed else nn.Conv2d
        groups = gcd(gcd(self.groups, shape[1]), self.out)
        m.conv = layer(shape[1], self.out, self.kernel, padding=self.kernel // 2, groups=groups, bias=self.bias)
        m.norm = norm2d(self.norm, self.out)

    def run(self, m: Block, x: Tensor) -> Tensor:
        return ACTS[self.act](m.norm(m.conv(x)))


@dataclass(frozen=True)
class Depthwise(Spec):
    multiplier: int = 1
    transposed: bool = False
    norm: str = "none"

    def make(self, m: Block, shape: Shape) -> None:
        layer = nn.ConvTranspose2d if self.transposed else nn.Conv2d
        m.conv = layer(shape[1], shape[1] * self.multiplier, 3, padding=1, groups=shape[1])
        m.norm = norm2d(self.norm, shape[1] * self.multiplier)

    def run(self, m: Block, x: Tensor) -> Tensor:
        return m.norm(m.conv(x))


@dataclass(frozen=True)
class Standardised(Spec):
    """A convolution with weights normalised at run time."""

    out: int
    groups: int = 1

    def make(self, m: Block, shape: Shape) -> None:
        m.groups = gcd(gcd(self.groups, shape[1]), self.out)
        m.conv = nn.Conv2d(shape[1], self.out, 3, padding=1, groups=m.groups)

    def zeros(self) -> bool:
        return False

    def run(self, m: Block, x: Tensor) -> Tensor:
        w = m.conv.weight
        w = (w - w.mean(dim=(1, 2, 3), keepdim=True)) / (w.var(dim=(1, 2, 3), keepdim=True) + 1e-3).sqrt()
        return F.conv2d(x, w, m.conv.bias, padding=1, groups=m.groups)


@dataclass(frozen=True)
class Blur(Spec):
    """A fixed kernel, expanded over the channels."""

    def make(self, m: Block, shape: Shape) -> None:
        m.register_buffer("kernel", torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0])) / 16)

    def run(self, m: Block, x: Tensor) -> Tensor:
        return F.conv2d(x, m.kernel.expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1])


@dataclass(frozen=True)
class Residual(Spec):
    """``skip``: identity, project (1x1), pad (option A: zeros for the new channels), half (only the first half)."""

    body: tuple[Spec, ...]
    skip: str = "identity"
    out: int = 8
    inplace: bool = False
    act: str = "relu"
    norm: str = "none"

    def make(self, m: Block, shape: Shape) -> None:
        channels = shape[1]
        out = channels if self.skip in ("identity", "half") else max(self.out, channels)
        m.body = Chain(self.body, shape)
        m.last = nn.Conv2d(m.body.shape[1], out, 1)
        m.norm = norm2d(self.norm, out)
        m.extra = out - channels
        if self.skip == "project":
            m.project = nn.Conv2d(channels, out, 1, bias=False)

    def run(self, m: Block, x: Tensor) -> Tensor:
        y = m.norm(m.last(m.body(x)))
        if y.shape[2:] != x.shape[2:]:
            x = F.adaptive_avg_pool2d(x, y.shape[2:])
        if self.skip == "project":
            x = m.project(x)
        if self.skip == "pad" and m.extra:
            x = F.pad(x, (0, 0, 0, 0, m.extra // 2, m.extra - m.extra // 2))
        if self.skip == "half":
            half = y.shape[1] // 2
            return torch.cat([y[:, :half] + x[:, :half], y[:, half:]], 1)
        if self.inplace:
            y += x
            return F.relu_(y) if self.act == "relu" else ACTS[self.act](y)
        return ACTS[self.act](y + x)


@dataclass(frozen=True)
class Dense(Spec):
    growths: tuple[int, ...]
    act: str = "relu"

    def make(self, m: Block, shape: Shape) -> None:
        m.convs, m.norms, channels = nn.ModuleList(), nn.ModuleList(), shape[1]
        for growth in self.growths:
            m.norms.append(nn.BatchNorm2d(channels))
            m.convs.append(nn.Conv2d(channels, growth, 3, padding=1))
            channels += growth

    def run(self, m: Block, x: Tensor) -> Tensor:
        features = [x]
        for norm, conv in zip(m.norms, m.convs, strict=True):
            features.append(conv(ACTS[self.act](norm(torch.cat(features, 1)))))
        return torch.cat(features, 1)


@dataclass(frozen=True)
class Branches(Spec):
    """Parallel convolutions of different widths, joined."""

    widths: tuple[int, ...]
    join: str = "cat"  # cat, sum, stack, mul
    pooled: bool = False

    def make(self, m: Block, shape: Shape) -> None:
        widths = self.widths if self.join == "cat" else self.widths[:1] * len(self.widths)
        m.convs = nn.ModuleList(nn.Conv2d(shape[1], w, 1 + 2 * (i % 2), padding=i % 2) for i, w in enumerate(widths))

    def run(self, m: Block, x: Tensor) -> Tensor:
        parts = [conv(x) for conv in m.convs]
        if self.join == "cat":
            return torch.cat([*parts, F.avg_pool2d(x, 3, 1, 1)] if self.pooled else parts, 1)
        if self.join == "stack":
            return torch.stack(parts, 2).amax(2)
        total = parts[0]
        for part in parts[1:]:
            total = total + part if self.join == "sum" else total * torch.sigmoid(part)
        return total


@dataclass(frozen=True)
class Split(Spec):
    """``how``: chunk, split (uneven), slice (uneven), step (every other), unbind, tensor_split; then one part works."""

    how: str = "chunk"
    join: str = "cat"  # cat, swap, add, mul
    work: bool = True

    def make(self, m: Block, shape: Shape) -> None:
        m.first = shape[1] // 3 if self.how in ("split", "slice") and self.join in ("cat", "swap") else shape[1] // 2
        m.whole = (
            shape[1] < 2 or (shape[1] % 2 and self.join in ("add", "mul")) or (shape[1] % 2 and self.how == "unbind")
        )
        m.whole = m.whole or m.first == 0
        if not m.whole:
            with torch.no_grad():
                second = self.cut(m, torch.zeros(shape))[1].shape[1]
            m.conv = nn.Conv2d(second, second, 3, padding=1) if self.work else nn.Identity()

    def cut(self, m: Block, x: Tensor) -> list[Tensor]:
        if self.how == "chunk":
            return list(x.chunk(2, dim=1))
        if self.how == "tensor_split":
            return list(torch.tensor_split(x, 2, dim=1))
        if self.how == "split":
            return list(x.split([m.first, x.shape[1] - m.first], dim=1))
        if self.how == "slice":
            return [x[:, : m.first], x[:, m.first :]]
        if self.how == "step":
            return [x[:, ::2], x[:, 1::2]]
        return list(x.unflatten(1, (2, -1)).unbind(1))

    def run(self, m: Block, x: Tensor) -> Tensor:
        if m.whole:
            return x
        a, b = self.cut(m, x)
        b = m.conv(b)
        if self.join == "add":
            return a + b
        if self.join == "mul":
            return a * torch.sigmoid(b)
        return torch.cat([a, b] if self.join == "cat" else [b, a], 1)


@dataclass(frozen=True)
class Shuffle(Spec):
    groups: int = 2
    how: str = "view"  # view, native

    def run(self, m: Block, x: Tensor) -> Tensor:
        groups = gcd(self.groups, x.shape[1])
        if self.how == "native":
            return F.channel_shuffle(x, groups)
        b, c, h, w = x.shape
        return x.view(b, groups, c // groups, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)


@dataclass(frozen=True)
class SqueezeExcite(Spec):
    hidden: int = 4
    linear: bool = False
    gate: str = "sigmoid"

    def make(self, m: Block, shape: Shape) -> None:
        layer = nn.Linear if self.linear else lambda i, o: nn.Conv2d(i, o, 1)
        m.down, m.up = layer(shape[1], self.hidden), layer(self.hidden, shape[1])

    def run(self, m: Block, x: Tensor) -> Tensor:
        s = x.mean((2, 3)) if self.linear else F.adaptive_avg_pool2d(x, 1)
        s = ACTS[self.gate](m.up(F.relu(m.down(s))))
        return x * (s[:, :, None, None] if self.linear else s)

    def expected(self, m: Block) -> dict[str, int]:
        return {"down": self.hidden}


@dataclass(frozen=True)
class Pixel(Spec):
    """Pixel shuffle and unshuffle, with a convolution in between."""

    up_first: bool = True
    manual: bool = False
    width: int = 3

    def make(self, m: Block, shape: Shape) -> None:
        m.before = nn.Conv2d(shape[1], 4 * self.width if self.up_first else self.width, 1)
        m.between = (
            nn.Conv2d(self.width, self.width, 3, padding=1) if self.up_first else nn.Conv2d(4 * self.width, 8, 1)
        )

    def run(self, m: Block, x: Tensor) -> Tensor:
        x = m.before(x)
        if self.up_first:
            return self.down(m.between(self.up(x)))
        if x.shape[2] % 2:
            x = F.pad(x, (0, 1, 0, 1))
        return self.up(m.between(self.down(x)))

    def up(self, x: Tensor) -> Tensor:
        if not self.manual:
            return F.pixel_shuffle(x, 2)
        b, c, h, w = x.shape
        return x.view(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, h * 2, w * 2)

    def down(self, x: Tensor) -> Tensor:
        if not self.manual:
            return F.pixel_unshuffle(x, 2)
        b, c, h, w = x.shape
        return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, c * 4, h // 2, w // 2)


@dataclass(frozen=True)
class Norm(Spec):
    kind: str = "batch"

    def make(self, m: Block, shape: Shape) -> None:
        m.norm = norm2d(self.kind, shape[1])

    def run(self, m: Block, x: Tensor) -> Tensor:
        return m.norm(x)


@dataclass(frozen=True)
class Pool(Spec):
    how: str = "max"  # max, avg, adaptive, lp, nearest, bilinear

    def run(self, m: Block, x: Tensor) -> Tensor:
        if self.how in ("nearest", "bilinear"):
            up = F.interpolate(x, scale_factor=2.0, mode=self.how)
            return F.max_pool2d(up, 2)
        pool = {"max": F.max_pool2d, "avg": F.avg_pool2d}.get(self.how)
        return pool(x, 3, 1, 1) if pool else F.adaptive_max_pool2d(x, tuple(x.shape[2:]))


@dataclass(frozen=True)
class Twice(Spec):
    """One layer used twice, or two layers that share a weight, or a block used again after another."""

    how: str = "shared"  # shared, tied, norm
    act: str = "relu"

    def make(self, m: Block, shape: Shape) -> None:
        c = shape[1]
        m.a, m.b = nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1)
        m.norm = nn.BatchNorm2d(c)
        if self.how == "tied":
            m.b.weight = m.a.weight

    def run(self, m: Block, x: Tensor) -> Tensor:
        second = m.a if self.how == "shared" else m.b
        return second(m.norm(ACTS[self.act](m.norm(m.a(x)))))


@dataclass(frozen=True)
class InPlace(Spec):
    how: str = "relu"  # relu, add, mul, clamp, view, module, self

    def make(self, m: Block, shape: Shape) -> None:
        m.conv = nn.Conv2d(shape[1], shape[1], 1)
        m.scale = nn.Parameter(torch.ones(shape[1], 1, 1))
        m.relu = nn.ReLU(inplace=True)

    def run(self, m: Block, x: Tensor) -> Tensor:
        y = m.conv(x)
        if self.how == "relu":
            z = F.relu_(y)
            return z + y
        if self.how == "add":
            return y.add_(x).mul_(0.5)
        if self.how == "mul":
            return y.mul_(m.scale)
        if self.how == "view":
            y[:, : y.shape[1] // 2].mul_(0.5)
            return y
        if self.how == "module":
            return m.relu(y) + y
        return y.clamp_(-1.0, 2.0)


@dataclass(frozen=True)
class Buffered(Spec):
    """A tensor with a value for each channel."""

    how: str = "persistent"  # persistent, transient, parameter
    op: str = "mul"

    def make(self, m: Block, shape: Shape) -> None:
        value = torch.linspace(0.5, 1.5, shape[1]).reshape(-1, 1, 1)
        if self.how == "parameter":
            m.scale = nn.Parameter(value)
        else:
            m.register_buffer("scale", value, persistent=self.how == "persistent")

    def run(self, m: Block, x: Tensor) -> Tensor:
        return x * m.scale if self.op == "mul" else x + m.scale


@dataclass(frozen=True)
class Gate(Spec):
    out: int
    how: str = "glu"  # glu, chunk

    def make(self, m: Block, shape: Shape) -> None:
        m.conv = nn.Conv2d(shape[1], 2 * self.out, 1)

    def run(self, m: Block, x: Tensor) -> Tensor:
        y = m.conv(x)
        if self.how == "glu":
            return F.glu(y, 1)
        a, b = y.chunk(2, 1)
        return a * F.silu(b)


@dataclass(frozen=True)
class Einsum(Spec):
    out: int

    def make(self, m: Block, shape: Shape) -> None:
        m.weight = nn.Parameter(torch.randn(self.out, shape[1]))

    def run(self, m: Block, x: Tensor) -> Tensor:
        return torch.einsum("bchw,oc->bohw", x, m.weight)


@dataclass(frozen=True)
class Resize(Spec):
    """Another spatial size: by stride, by pooling, by a strided transposed convolution."""

    how: str = "stride"  # stride, max, up, half, subsample

    def make(self, m: Block, shape: Shape) -> None:
        m.small = shape[2] < 4
        m.large = shape[2] > 8
        if self.how in ("stride", "up"):
            layer = nn.Conv2d if self.how == "stride" else nn.ConvTranspose2d
            m.conv = layer(shape[1], 6, 2, stride=2)

    def run(self, m: Block, x: Tensor) -> Tensor:
        if m.large if self.how == "up" else m.small:
            return x
        if self.how in ("stride", "up"):
            return m.conv(x)
        if self.how == "max":
            return F.max_pool2d(x, 2, ceil_mode=True)
        return F.adaptive_avg_pool2d(x, 3) if self.how == "half" else x[:, :, ::2, 1::2]


@dataclass(frozen=True)
class Odd(Spec):
    """Layouts that are rarer: im2col, 3d, maxout, channel folding, dropout and stochastic depth."""

    how: str = "unfold"  # unfold, conv3d, maxout, fold, drop, permuted, prelu, gram, group_mean, padded

    def make(self, m: Block, shape: Shape) -> None:
        c = shape[1]
        m.groups = gcd(c, 2)
        m.linear = nn.Linear(9 * c if self.how == "unfold" else c, 6)
        m.conv3d = nn.Conv3d(1, 2, (1, 3, 3), padding=(0, 1, 1))
        m.prelu, m.drop = nn.PReLU(c), nn.Dropout2d(0.2)
        m.depth = StochasticDepth(0.2, "row")
        m.conv = nn.Conv2d(c, c, 1)

    def zeros(self) -> bool:
        return self.how != "maxout"

    def run(self, m: Block, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        if self.how == "unfold":
            return m.linear(F.unfold(x, 3, padding=1).transpose(1, 2)).transpose(1, 2).reshape(b, -1, h, w)
        if self.how == "conv3d":
            return m.conv3d(x.unsqueeze(1)).flatten(1, 2)
        if self.how == "maxout":
            return x.view(b, m.groups, c // m.groups, h, w).amax(1)
        if self.how == "fold":
            return F.fold(F.unfold(x, 3, padding=1), (h, w), 3, padding=1)
        if self.how == "drop":
            return x + m.depth(m.drop(m.conv(x)))
        if self.how == "permuted":
            return m.linear(x.permute(0, 2, 3, 1)).movedim(-1, 1)
        if self.how == "prelu":
            return m.prelu(x)
        if self.how == "gram":
            flat = x.flatten(2)
            return (torch.bmm(torch.bmm(flat, flat.transpose(1, 2)) / (h * w), flat) * 0.1).view(b, c, h, w)
        if self.how == "group_mean":
            y = x.reshape(b, m.groups, -1, h, w)
            return (y - y.mean(2, keepdim=True)).reshape(b, c, h, w)
        return F.pad(x, (1, 0, 0, 1, 1, 2))[:, :, 1:, :-1]


@dataclass(frozen=True)
class AsTokens(Spec):
    """The positions as tokens, through token blocks, and back."""

    body: tuple[Spec, ...]

    def make(self, m: Block, shape: Shape) -> None:
        m.body = Chain(self.body, (shape[0], shape[2] * shape[3], shape[1]))

    def run(self, m: Block, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        y = m.body(x.flatten(2).transpose(1, 2))[:, -h * w :]  # without tokens put in front
        return y.transpose(1, 2).reshape(b, -1, h, w)

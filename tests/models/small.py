"""Small whole networks with every kind of coupling, for the tests of the core."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Two residual blocks with a squeeze-excitation gate and a grouped convolution, then a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.one = nn.Sequential(nn.Conv2d(12, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 1))
        self.two = nn.Sequential(
            nn.Conv2d(12, 16, 1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, groups=4),
            nn.ReLU(),
            nn.Conv2d(16, 12, 1, bias=False),
            nn.BatchNorm2d(12),
        )
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 6, 1), nn.ReLU(), nn.Conv2d(6, 12, 1), nn.Sigmoid()
        )
        self.head = nn.Linear(12 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.one(x)
        y = self.two(x)
        x = F.relu(x + y * self.gate(y))
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


class Block(nn.Module):
    """A pre-norm transformer block with grouped queries and a gated MLP."""

    def __init__(self, width: int = 12, heads: int = 4, groups: int = 2, inner: int = 16) -> None:
        super().__init__()
        size = width // heads
        self.heads, self.groups, self.size = heads, groups, size
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, size * n) for n in (heads, groups, groups))
        self.o = nn.Linear(width, width)
        self.up, self.gate, self.down = (nn.Linear(width, inner), nn.Linear(width, inner), nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        y = self.n1(x)
        q = self.q(y).view(b, n, self.heads, self.size).transpose(1, 2)
        k, v = (f(y).view(b, n, self.groups, self.size).transpose(1, 2) for f in (self.k, self.v))
        k, v = (z.repeat_interleave(self.heads // self.groups, dim=1) for z in (k, v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))
        y = self.n2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Transformer(nn.Module):
    """Two blocks between an embedding and a head that is tied to it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 12)
        self.blocks = nn.Sequential(Block(), Block(groups=4, inner=10))
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embedding(ids))))


class Mobile(nn.Module):
    """Inverted residuals, dense connections, a shuffle and a layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.expand, self.depth, self.project = (
            nn.Conv2d(8, 16, 1),
            nn.Conv2d(16, 16, 3, padding=1, groups=16),
            nn.Conv2d(16, 8, 1),
        )
        self.grow = nn.Conv2d(8, 8, 3, padding=1)
        self.shared = nn.Conv2d(16, 16, 1)
        self.shuffle = nn.ChannelShuffle(2)
        self.grouped = nn.Conv2d(16, 10, 1, groups=2)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu6(self.stem(x))
        x = x + self.project(F.relu6(self.depth(F.relu6(self.expand(x)))))
        x = torch.cat([x, F.relu(self.grow(x))], 1)
        x = F.relu(self.shared(F.relu(self.shared(x))))
        x = F.relu(self.grouped(self.shuffle(x)))
        y = x.mean((2, 3))
        return self.head(y), y.std(1)


def image(batch: int = 3, size: int = 8, seed: int = 0) -> tuple[Tensor, ...]:
    """Returns an image batch."""
    return (torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64),)


def ids(batch: int = 3, length: int = 6, seed: int = 0) -> tuple[Tensor, ...]:
    """Returns token ids."""
    return (torch.randint(0, 11, (batch, length), generator=torch.Generator().manual_seed(seed)),)


NETWORKS: dict[str, tuple[type[nn.Module], Any]] = {
    "residual": (Residual, image),
    "transformer": (Transformer, ids),
    "mobile": (Mobile, image),
}


def example(name: str, seed: int = 1) -> tuple[Tensor, ...]:
    """Returns inputs of a network that it was not captured with."""
    inputs: tuple[Tensor, ...] = NETWORKS[name][1](seed=seed)
    return inputs


class Aside(nn.Module):
    """A convolution with its norm, a head, and a layer that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.head, self.aside = nn.Linear(8, 5), nn.Linear(7, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


class Convolutions(nn.Module):
    """Takes images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 3, stride=2))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.body(x)).mean((2, 3)))


def classifier(first: int, second: int, hidden: int, pool: int = 1) -> nn.Sequential:
    """Returns two convolutions, a batch norm behind the first, and two linear layers behind the pooling, for images."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, first, 3), nn.BatchNorm2d(first), nn.ReLU(), nn.Conv2d(first, second, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(pool), nn.Flatten()),
        *(nn.Linear(second * pool**2, hidden), nn.GELU(), nn.Linear(hidden, 4)),
    ).eval()

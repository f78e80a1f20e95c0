"""Networks whose class says its sizes in ways of its own: attributes, config objects, equal halves, literals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Heads(nn.Module):
    """Attention that keeps its heads and their width as attributes, and reshapes by both."""

    def __init__(self, width: int = 24, heads: int = 4, head_dim: int = 8) -> None:
        super().__init__()
        self.heads, self.head_dim, self.inner = heads, head_dim, heads * head_dim
        self.qkv = nn.Linear(width, 3 * self.inner)
        self.out = nn.Linear(self.inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Returns attention over ``x``, ``[batch, length, width]``."""
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-1, -2) * self.head_dim**-0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(b, n, self.inner))


class Attending(nn.Module):
    """A stream with two layers of attention and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 24)
        self.layers = nn.ModuleList(Heads() for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(24) for _ in range(2))
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits for ``x``, ``[batch, length, 12]``."""
        x = self.embed(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.head(x.mean(1))


class Halves(nn.Module):
    """A ``chunk`` into equal halves, of which one goes through a layer and both are joined again."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.half = width // 2
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.inner = nn.Conv2d(width // 2, width // 2, 3, padding=1)
        self.last = nn.Conv2d(width * 3 // 2, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns a map for ``x``, ``[batch, 3, height, width]``."""
        return self.joined(*self.stem(x).relu().chunk(2, 1))

    def in_halves(self, x: Tensor) -> Tensor:
        """Returns the same for ``x``, ``[batch, 3, height, width]``, by an attribute that ``forward`` does not read."""
        return self.joined(*self.stem(x).relu().split((self.half, self.half), 1))

    def joined(self, a: Tensor, b: Tensor) -> Tensor:
        """Returns a map of two halves, ``[batch, half, height, width]`` each."""
        return self.last(torch.cat([a, b, self.inner(b).relu()], 1))


@dataclass
class Settings:
    """Sizes that several layers share."""

    width: int = 24
    hidden: int = 48


class Gated(nn.Module):
    """A gated layer that reads where its halves end from shared settings."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.up = nn.Linear(settings.width, 2 * settings.hidden)
        self.down = nn.Linear(settings.hidden, settings.width)

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``x``, ``[batch, width]``, gated."""
        both = self.up(x)
        return self.down(both[:, : self.settings.hidden].relu() * both[:, self.settings.hidden :])


class Shared(nn.Module):
    """Two gated layers over one object of settings."""

    def __init__(self) -> None:
        super().__init__()
        self.settings = Settings()
        self.first = nn.Linear(7, 24)
        self.gates = nn.Sequential(Gated(self.settings), Gated(self.settings))
        self.last = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits for ``x``, ``[batch, 7]``."""
        return self.last(self.gates(self.first(x)))


class Literal(nn.Module):
    """A size as a number in the code: nothing can be said but that."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 32)
        self.b = nn.Linear(8, 16)
        self.c = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits for ``x``, ``[batch, 6]``."""
        parts = self.a(x).relu().view(-1, 4, 8)
        return self.c(self.b(parts).relu().flatten(1))


class RootMean(nn.Module):
    """A norm written out, with a gain and an eps of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.small = 1e-2

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``x``, ``[..., width]``, over its root mean square."""
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.small))


class Normed(nn.Module):
    """A stream with norms that are written out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 32), RootMean(32)
        self.inner, self.last = nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits for ``x``, ``[batch, 6]``."""
        return self.last(F.gelu(self.inner(self.norm(self.first(x)))))


class Auxiliary(nn.Module):
    """A second head, with parameters of its own, that works in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3)
        self.last, self.beside = nn.Linear(24, 4), nn.Sequential(nn.Conv2d(16, 12, 1), nn.Conv2d(12, 4, 1))
        self.never = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Returns logits for ``x``, ``[batch, 3, height, width]``; in training those of the second head as well."""
        x = self.first(x).relu()
        y = self.last(self.second(x).relu().mean((2, 3)))
        return (y, self.beside(x).mean((2, 3))) if self.training else y


class Targets(nn.Module):
    """A forward that wants targets in training, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        """Returns logits for ``x``, ``[batch, 6]``; in training the loss."""
        y: Tensor = self.last(self.first(x).relu())
        if not self.training:
            return y
        assert targets is not None, "in training mode, targets should be passed"
        return F.cross_entropy(y, targets)


class Caching(nn.Module):
    """Keeps a bias by head that it makes of a parameter in evaluation mode, as LeViT does, until it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 3)
        self.bias = nn.Parameter(torch.randn(4, 2))
        self.index, self.cache = torch.tensor([0, 1, 1, 0]), dict[str, Tensor]()

    def train(self, mode: bool = True) -> Caching:
        """Forgets what was kept."""
        super().train(mode)
        if mode:
            self.cache.clear()
        return self

    def biases(self) -> Tensor:
        """Returns the bias of each head, ``[heads, 4]``."""
        if self.training:
            return self.bias[:, self.index]
        if "bias" not in self.cache:
            self.cache["bias"] = self.bias[:, self.index]
        return self.cache["bias"]

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits for ``x``, ``[batch, 6]``."""
        y = self.up(x).reshape(len(x), self.heads, -1) + self.biases()
        return self.down(y.flatten(1).relu())


class Packed(nn.Module):
    """Attention whose queries, keys and values are told apart by a view that leaves the width of a head open, as Swin's."""

    def __init__(self, width: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(6, 3 * width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Returns attention over ``x``, ``[batch, length, 6]``."""
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = ((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2)
        return self.out(y.reshape(b, n, -1))

"""Networks that are trained on a schedule, and the loop that trains them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune


class Residual(nn.Module):
    """Two convolutions around an activation, added to what came in."""

    def __init__(self, width: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width)
        self.conv2, self.norm2 = nn.Conv2d(2 * width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.conv2(self.activation(self.norm1(self.conv1(x))))))


def convolutional(activation: Callable[[Tensor], Tensor] = F.relu) -> nn.Module:
    """Returns a small residual network with batch norms, in float64."""
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()]
    blocks = [Residual(12, activation), Residual(12, activation)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 4)).double()


class Attending(nn.Module):
    """Tokens of 6 numbers: a transformer layer before its norms, the mean of the tokens, a head."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.embed, self.heads = nn.Linear(6, width), heads
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(width, 32), nn.Linear(32, width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm1(x)
        q, k, v = (layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(self.norm3(x).mean(1))


def attending() -> nn.Module:
    torch.manual_seed(0)
    return Attending().double()


def images(count: int = 32, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 8, 8, generator=draw).to(dtype), torch.randint(4, (count,), generator=draw)


def tokens(count: int = 32, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(count, 5, 6, generator=draw).to(dtype), torch.randint(4, (count,), generator=draw)


def trained(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    schedule: fxprune.Schedule,
    steps: int,
    optimizer: torch.optim.Optimizer | None = None,
) -> list[float]:
    """Trains in place with momentum and weight decay, and returns the losses."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    losses, (x, y) = [], data
    for _ in range(steps):
        model.train()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step(0.05)
        losses.append(float(loss.detach()))
    return losses


def same(pruned: nn.Module, model: nn.Module, x: Tensor) -> float:
    """Returns the largest difference of outputs in evaluation mode."""
    with torch.no_grad():
        return float((pruned.eval()(x) - model.eval()(x)).abs().max())


def schedule_of(model: nn.Module, data: tuple[Tensor, Tensor], budget: Any = 0.5, **options: Any) -> fxprune.Schedule:
    return fxprune.Schedule(model, [data[0]], budget, **{"steps": 10, "every": 2, "dynamic_shapes": {}, **options})

"""Networks whose layers can be called one by one, as a formula needs them."""

from __future__ import annotations

from torch import Tensor, nn


class Conv(nn.Module):
    """A map that a convolution reads, and one that is flattened for a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3)
        self.norm, self.c = nn.BatchNorm2d(5), nn.Linear(5 * 16, 4)

    def first(self, x: Tensor) -> Tensor:
        return self.a(x).relu()

    def second(self, x: Tensor) -> Tensor:
        return self.norm(self.b(x)).relu()

    def last(self, x: Tensor) -> Tensor:
        return self.c(x.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x)))


class Mlp(nn.Module):
    """Two hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(7, 6), nn.Linear(6, 5), nn.Linear(5, 4)

    def first(self, x: Tensor) -> Tensor:
        return self.a(x).relu()

    def second(self, x: Tensor) -> Tensor:
        return self.b(x).relu()

    def last(self, x: Tensor) -> Tensor:
        return self.c(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x)))

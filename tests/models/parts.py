"""Networks that cannot be captured whole: values decide how they go on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.models.small import Residual


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())


class Detector(nn.Module):
    """Takes a list of images, runs a head on two feature maps, and returns as many boxes as pass a threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(3, 16, 2), _conv(16, 12, 2))
        self.deeper = nn.ModuleList([nn.Sequential(_conv(12, 20, 2), _conv(20, 12))])
        self.head = nn.Sequential(_conv(12, 24), nn.Conv2d(24, 5, 1))

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        features = [self.body(torch.stack(images))]
        features += [layer(features[0]) for layer in self.deeper]
        found = torch.cat([self.head(level).flatten(2) for level in features], 2)
        kept = [row[:, row[0] > float(row[0].mean().detach())] for row in found]
        return [{"boxes": row[1:].T, "scores": row[0].sigmoid()} for row in kept]


class Uncapturable(nn.Module):
    """Decides by values how to go on, around a part that can be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Residual().double()

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return y * 2 if float(y.sum()) > 0 else y


def layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    first, second = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(hidden, outputs))


class Two(nn.Module):
    """Decides by values between two parts, ``a`` and ``b``; subclasses hold them in other ways as well."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b = layers(8, 24, 8), layers(8, 32, 4)
        self.more()

    def more(self) -> None:
        """Adds what a subclass has besides."""

    def forward(self, x: Tensor) -> Any:
        return self.second(self.first(x))

    def first(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(x)
        return y * 2 if float(y.detach().sum()) > 1e9 else y

    def second(self, y: Tensor) -> Tensor:
        found: Tensor = self.b(y)
        return found

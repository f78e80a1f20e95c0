"""Networks that cannot be captured whole: values decide how they go on."""

from __future__ import annotations

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

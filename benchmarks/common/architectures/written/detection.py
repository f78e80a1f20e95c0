"""One-stage detectors, and the stems that fold space into channels."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Call
from .inputs import image
from .vision import Classifier


class Conv(nn.Module):
    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2, bias=False)
        self.bn = nn.BatchNorm2d(c2, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, c: int, shortcut: bool = True) -> None:
        super().__init__()
        self.cv1 = Conv(c, c, 3)
        self.cv2 = Conv(c, c, 3)
        self.add = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C2f(nn.Module):
    """A cross-stage block: halves of one convolution, each bottleneck's output, all concatenated."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True) -> None:
        super().__init__()
        self.c = c2 // 2
        self.cv1 = Conv(c1, 2 * self.c)
        self.cv2 = Conv((2 + n) * self.c, c2)
        self.m = nn.ModuleList(Bottleneck(self.c, shortcut) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        for m in self.m:
            y.append(m(y[-1]))
        return self.cv2(torch.cat(y, 1))


class C3(nn.Module):
    """A cross-stage block with two convolutions instead of a split."""

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.cv1 = Conv(c1, c2 // 2)
        self.cv2 = Conv(c1, c2 // 2)
        self.cv3 = Conv(c2, c2)
        self.m = nn.Sequential(Bottleneck(c2 // 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), dim=1))


class SPPF(nn.Module):
    """Pools one after the other, all concatenated."""

    def __init__(self, c1: int, c2: int, k: int = 5) -> None:
        super().__init__()
        self.cv1 = Conv(c1, c1 // 2)
        self.cv2 = Conv(2 * c1, c2)
        self.m = nn.MaxPool2d(k, stride=1, padding=k // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        y1 = self.m(x)
        y2 = self.m(y1)
        return self.cv2(torch.cat([x, y1, y2, self.m(y2)], 1))


class DFL(nn.Module):
    """The expectation of a distribution over distances (Li et al. 2020), as a convolution with fixed weights."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.data[:] = torch.arange(bins, dtype=torch.float).view(1, bins, 1, 1)
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        b, _, anchors = x.shape
        return self.conv(x.view(b, 4, self.bins, anchors).transpose(2, 1).softmax(1)).view(b, 4, anchors)


class Detect(nn.Module):
    """Anchor-free heads: boxes and classes of every cell of every level, ``[batch, 4 + classes, cells]``."""

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], classes: int = 3) -> None:
        super().__init__()
        self.strides, self.classes, self.bins = strides, classes, 4
        box = 4 * self.bins
        self.cv2 = nn.ModuleList(nn.Sequential(Conv(c, 8, 3), nn.Conv2d(8, box, 1)) for c in channels)
        self.cv3 = nn.ModuleList(nn.Sequential(Conv(c, 8, 3), nn.Conv2d(8, classes, 1)) for c in channels)
        self.dfl = DFL(self.bins)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = [torch.cat((box(f), cls(f)), 1) for f, box, cls in zip(features, self.cv2, self.cv3, strict=True)]
        flat = torch.cat([level.view(level.shape[0], 4 * self.bins + self.classes, -1) for level in x], 2)
        box, cls = flat.split((4 * self.bins, self.classes), 1)
        centres, strides = self.grid(x)
        left_top, right_bottom = self.dfl(box).chunk(2, 1)
        low, high = centres - left_top, centres + right_bottom
        boxes = torch.cat(((low + high) / 2, high - low), 1) * strides
        return torch.cat((boxes, cls.sigmoid()), 1)

    def grid(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Returns centres ``[2, cells]`` and strides ``[1, cells]``."""
        centres, strides = [], []
        for f, stride in zip(features, self.strides, strict=True):
            h, w = f.shape[2:]
            sy = torch.arange(h, device=f.device, dtype=f.dtype) + 0.5
            sx = torch.arange(w, device=f.device, dtype=f.dtype) + 0.5
            sy, sx = torch.meshgrid(sy, sx, indexing="ij")
            centres.append(torch.stack((sx, sy), -1).view(-1, 2))
            strides.append(torch.full((h * w, 1), stride, dtype=f.dtype, device=f.device))
        return torch.cat(centres).transpose(0, 1), torch.cat(strides).transpose(0, 1)


class Detector(nn.Module):
    """Backbone, pooling pyramid, a neck up and down with concatenations, two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv(3, 8, 3, 2)
        self.stage1 = nn.Sequential(Conv(8, 16, 3, 2), C2f(16, 16, n=2))
        self.stage2 = nn.Sequential(Conv(16, 32, 3, 2), C2f(32, 32), SPPF(32, 32))
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.neck1 = C2f(48, 16, shortcut=False)
        self.down = Conv(16, 16, 3, 2)
        self.neck2 = C2f(48, 32, shortcut=False)
        self.detect = Detect((16, 32), strides=(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        p1 = self.stage1(self.stem(x))
        p2 = self.stage2(p1)
        n1 = self.neck1(torch.cat([self.up(p2), p1], 1))
        n2 = self.neck2(torch.cat([self.down(n1), p2], 1))
        return self.detect([n1, n2])


class Focus(nn.Module):
    """Four images of half the size, stacked."""

    def __init__(self, c1: int, c2: int, k: int = 3) -> None:
        super().__init__()
        self.conv = Conv(c1 * 4, c2, k)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.cat((x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]), 1))


class SpaceToDepth(nn.Module):
    """Instead of a stride: space into channels, then a convolution (Sunkara and Luo 2022)."""

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.conv = Conv(c1 * 4, c2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pixel_unshuffle(x, 2))


def focus() -> nn.Module:
    return Classifier(nn.Sequential(Focus(3, 8), Conv(8, 16, 3, 2), C3(16, 16), Focus(16, 16)), 16)


def space_to_depth() -> nn.Module:
    return Classifier(nn.Sequential(Conv(3, 8, 3), SpaceToDepth(8, 16), SpaceToDepth(16, 16)), 16)


MODELS: dict[str, Callable[[], Call]] = {
    "yolo-c2f": lambda: Call(Detector(), (image(),)),
    "yolo-focus": lambda: Call(focus(), (image(),)),
    "space-to-depth": lambda: Call(space_to_depth(), (image(),)),
}

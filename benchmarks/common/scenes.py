"""Segmentation on real data that ship with scikit-learn: scenes of scanned digits, a class for each pixel, and a small U-Net."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.contrib.demo import load_digits

CLASSES = 11  # background, then the ten digits
SIZE = 32
INK = 0.35  # from this darkness on a pixel belongs to its digit


def scenes(count: int, *, test: bool = False, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Returns images float32 [n, 1, 32, 32] and pixel classes int64 [n, 32, 32]; test scenes are of other digits.

    Each quarter of a scene holds a digit of 8 x 8 pixels at twice its size, somewhere, or nothing (one in five).
    """
    data = load_digits()
    pixels, labels = data.test if test else data.train
    pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min())
    generator = torch.Generator().manual_seed(seed + test)
    images, classes = torch.zeros(count, 1, SIZE, SIZE), torch.zeros(count, SIZE, SIZE, dtype=torch.int64)
    half = SIZE // 2
    for n in range(count):
        for top, left in ((0, 0), (0, half), (half, 0), (half, half)):
            if float(torch.rand((), generator=generator)) < 0.2:
                continue
            chosen = int(torch.randint(len(labels), (), generator=generator))
            side = int(torch.randint(12, half + 1, (), generator=generator))
            digit = F.interpolate(pixels[chosen][None], (side, side), mode="bilinear")[0, 0]
            y, x = (int(torch.randint(half - side + 1, (), generator=generator)) for _ in range(2))
            place = (slice(top + y, top + y + side), slice(left + x, left + x + side))
            images[n, 0][place] = digit
            classes[n][place] = torch.where(digit > INK, int(labels[chosen]) + 1, 0)
    return images - images.mean(), classes


class UNet(nn.Module):
    """Two levels down and up again, with concatenated shortcuts (Ronneberger et al. 2015, arXiv 1505.04597), small."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down1, self.down2 = _level(1, width), _level(width, 2 * width)
        self.bottom = _level(2 * width, 4 * width)
        self.rise2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.up2 = _level(4 * width, 2 * width)
        self.rise1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.up1 = _level(2 * width, width)
        self.head = nn.Conv2d(width, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, 1, H, W] to logits [N, 11, H, W]; H and W are multiples of 4."""
        fine = self.down1(x)
        middle = self.down2(F.max_pool2d(fine, 2))
        y = self.rise2(self.bottom(F.max_pool2d(middle, 2)))
        y = self.rise1(self.up2(torch.cat([middle, y], 1)))
        logits: Tensor = self.head(self.up1(torch.cat([fine, y], 1)))
        return logits


def _level(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )


@torch.no_grad()
def mean_iou(model: nn.Module, images: Tensor, classes: Tensor) -> float:
    """Returns the mean intersection over union of the digits' classes, in percent."""
    from torchmetrics.classification import MulticlassJaccardIndex

    metric = MulticlassJaccardIndex(CLASSES, average="none")
    for x, y in zip(images.split(100), classes.split(100), strict=True):
        metric.update(model.eval()(x).argmax(1), y)
    return 100 * float(metric.compute()[1:].mean())

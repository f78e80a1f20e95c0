"""Images to images: skips by concatenation or addition, upsampling of every kind."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Call
from .inputs import image
from .vision import conv_bn


class DoubleConv(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(*conv_bn(inputs, outputs), *conv_bn(outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.double_conv(x)


class Up(nn.Module):
    def __init__(self, below: int, skip: int, outputs: int, bilinear: bool) -> None:
        super().__init__()
        if bilinear:
            self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        else:
            self.up = nn.ConvTranspose2d(below, below // 2, kernel_size=2, stride=2)
            below = below // 2
        self.conv = DoubleConv(below + skip, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        dy, dx = skip.size(2) - x.size(2), skip.size(3) - x.size(3)
        x = F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return self.conv(torch.cat([skip, x], dim=1))


class UNet(nn.Module):
    """Ronneberger et al. 2015, two levels."""

    def __init__(self, bilinear: bool, classes: int = 2) -> None:
        super().__init__()
        self.inc = DoubleConv(3, 8)
        self.down1 = nn.Sequential(nn.MaxPool2d(2), DoubleConv(8, 16))
        self.down2 = nn.Sequential(nn.MaxPool2d(2), DoubleConv(16, 32))
        self.up1 = Up(32, 16, 16, bilinear)
        self.up2 = Up(16, 8, 8, bilinear)
        self.outc = nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x = self.up1(x3, x2)
        x = self.up2(x, x1)
        return self.outc(x)


class Autoencoder(nn.Module):
    """Convolutions down to a code, transposed convolutions back."""

    def __init__(self, code: int = 12) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.ReLU(True),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(True),
            nn.Flatten(),
            nn.Linear(16 * 4 * 4, code),
        )
        self.decoder = nn.Sequential(
            nn.Linear(code, 16 * 4 * 4),
            nn.ReLU(True),
            nn.Unflatten(1, (16, 4, 4)),
            nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1, output_padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(True),
            nn.ConvTranspose2d(8, 3, 3, stride=2, padding=1, output_padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.decoder(self.encoder(x)))


class ESPCN(nn.Module):
    """Super-resolution by a shuffle at the end (Shi et al. 2016)."""

    def __init__(self, scale: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 5, padding=2)
        self.conv2 = nn.Conv2d(16, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(8, scale**2, 3, padding=1)
        self.pixel_shuffle = nn.PixelShuffle(scale)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv1(x))
        x = torch.tanh(self.conv2(x))
        return self.pixel_shuffle(self.conv3(x))


class EDSR(nn.Module):
    """Residual blocks without norms, a shuffle of many channels in the middle (Lim et al. 2017)."""

    def __init__(self, width: int = 8, scale: int = 2) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(True), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(2)
        )
        self.upsample = nn.Sequential(nn.Conv2d(width, width * scale**2, 3, padding=1), nn.PixelShuffle(scale))
        self.tail = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        res = x
        for block in self.body:
            res = res + 0.1 * block(res)
        return self.tail(self.upsample(x + res))


class FPN(nn.Module):
    """A feature pyramid with top-down additions and one head for all levels (Lin et al. 2017)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, stride=2)
        self.layer1 = conv_bn(8, 16, stride=2)
        self.layer2 = conv_bn(16, 32, stride=2)
        self.lateral = nn.ModuleList([nn.Conv2d(c, width, 1) for c in (8, 16, 32)])
        self.smooth = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(3)])
        self.head = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        c1 = self.stem(x)
        c2 = self.layer1(c1)
        c3 = self.layer2(c2)
        features = [lateral(c) for lateral, c in zip(self.lateral, (c1, c2, c3), strict=True)]
        for i in range(2, 0, -1):
            size = features[i - 1].shape[-2:]
            features[i - 1] = features[i - 1] + F.interpolate(features[i], size=size, mode="nearest")
        maps = [self.head(F.relu(smooth(f))) for smooth, f in zip(self.smooth, features, strict=True)]
        return OrderedDict((f"p{i}", m) for i, m in enumerate(maps))


MODELS: dict[str, Callable[[], Call]] = {
    "unet-bilinear": lambda: Call(UNet(bilinear=True), (image(size=16),)),
    "unet-transposed": lambda: Call(UNet(bilinear=False), (image(size=16),)),
    "autoencoder": lambda: Call(Autoencoder(), (image(size=16),)),
    "espcn": lambda: Call(ESPCN(), (image(1, 16),)),
    "edsr": lambda: Call(EDSR(), (image(size=16),)),
    "fpn": lambda: Call(FPN(), (image(),)),
}

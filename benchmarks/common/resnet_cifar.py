"""The CIFAR ResNets of He et al. 2016, section 4.2, with parameter-free shortcuts (option A).

Run as ``python -m benchmarks.common.resnet_cifar`` to check the loader and the weights: ResNet-20 gives 91.73 %
and ResNet-56 gives 93.39 % on the 10,000 test images.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from .data import shared_file

PUBLISHED = {20: 91.73, 32: 92.63, 44: 93.10, 56: 93.39}  # top-1 in percent, 10,000 test images, float32


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; where the width grows, the shortcut subsamples and pads the channels with zeros."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.pad = (width - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, inputs, H, W] to [N, width, H / stride, W / stride]."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or self.pad:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """A stem of 16 channels, three stages of ``n`` basic blocks (16, 32, 64 channels), average pooling, ``linear``."""

    def __init__(self, n: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, n, 1)
        self.layer2 = self._stage(16, 32, n, 2)
        self.layer3 = self._stage(32, 64, n, 2)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _stage(inputs: int, width: int, n: int, stride: int) -> nn.Sequential:
        return nn.Sequential(*(BasicBlock(width if i else inputs, width, 1 if i else stride) for i in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, 3, 32, 32] to logits [N, classes]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def resnet(depth: int, pretrained: bool = True) -> CifarResNet:
    """Returns the ResNet of the given depth (20, 32, 44 or 56) in evaluation mode, with the shared CIFAR-10 weights.

    Raises:
        MissingDataError: ``pretrained``, and the weights are not in the shared folder.
    """
    model = CifarResNet((depth - 2) // 6)
    if pretrained:
        model.load_state_dict(load_file(shared_file(f"models/cifar10-resnet{depth}.safetensors")), strict=True)
    return model.eval()


def depth_of(options: argparse.Namespace) -> int:
    """Returns the depth that the tables are about, 56; quick runs take the smallest."""
    return 20 if options.quick else 56


def main() -> None:
    """Prints measured and published top-1 of the smallest and the largest network."""
    from . import cifar

    torch.set_num_threads(2)
    images, labels = cifar.test_set()
    for depth in (20, 56):
        got = cifar.accuracy(resnet(depth), images, labels)
        print(f"ResNet-{depth}: {got:.2f} (published {PUBLISHED[depth]:.2f})", flush=True)


if __name__ == "__main__":
    main()

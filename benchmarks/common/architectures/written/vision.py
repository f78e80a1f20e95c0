"""Convolutional classifiers: what their normalisation, weights or branches do is what sets them apart."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from .. import Call
from .inputs import image


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Classifier(nn.Module):
    """A body, global average pooling and one linear layer."""

    def __init__(self, body: nn.Module, width: int, classes: int = 5) -> None:
        super().__init__()
        self.body = body
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.body(x))
        x = torch.flatten(x, 1)
        return self.fc(x)


class GroupNormBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(4, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(4, outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.GroupNorm(4, outputs))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = F.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return F.relu(out)


class WSConv2d(nn.Conv2d):
    """Standardises its kernel at each call (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        weight = (self.weight - mean) / torch.sqrt(var + 1e-10)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class SNBlock(nn.Module):
    """The residual block of SNGAN's discriminator (Miyato et al. 2018)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = spectral_norm(nn.Conv2d(inputs, outputs, 3, padding=1))
        self.conv2 = spectral_norm(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.shortcut = spectral_norm(nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.leaky_relu(self.conv1(F.leaky_relu(x, 0.2)), 0.2))
        return F.avg_pool2d(h, 2) + self.shortcut(F.avg_pool2d(x, 2))


class DenseBlock(nn.Module):
    """Each layer reads all before it (Huang et al. 2017)."""

    def __init__(self, inputs: int, growth: int = 8, depth: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for i in range(depth):
            width = inputs + i * growth
            self.layers.append(
                nn.Sequential(
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(width, 2 * growth, 1, bias=False),
                    nn.BatchNorm2d(2 * growth),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False),
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, dim=1)))
        return torch.cat(features, dim=1)


class Inception(nn.Module):
    def __init__(self, inputs: int, width: int = 8) -> None:
        super().__init__()
        self.branch1 = conv_bn(inputs, width, 1)
        self.branch2 = nn.Sequential(conv_bn(inputs, width, 1), conv_bn(width, 2 * width, 3))
        self.branch3 = nn.Sequential(conv_bn(inputs, width // 2, 1), conv_bn(width // 2, width, 5))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, padding=1, ceil_mode=True), conv_bn(inputs, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        outputs = [self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)]
        return torch.cat(outputs, 1)


def depthwise_separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """MobileNet's block: a depthwise and a pointwise convolution (Howard et al. 2017)."""
    return nn.Sequential(*conv_bn(inputs, inputs, 3, stride, groups=inputs), *conv_bn(inputs, outputs, 1))


class ResNeXtBlock(nn.Module):
    def __init__(self, width: int, inner: int = 16, groups: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + x)


class RepVGGBlock(nn.Module):
    """A 3x3, a 1x1 and an identity branch before they are merged (Ding et al. 2021)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.rbr_dense = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs)
        )
        self.rbr_1x1 = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.rbr_identity = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        identity = 0 if self.rbr_identity is None else self.rbr_identity(x)
        return F.relu(self.rbr_dense(x) + self.rbr_1x1(x) + identity)


def groupnorm_resnet() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.GroupNorm(4, 16), nn.ReLU())
    return Classifier(nn.Sequential(stem, GroupNormBlock(16, 16), GroupNormBlock(16, 32, stride=2)), 32)


def weight_standardised() -> nn.Module:
    body = nn.Sequential(
        WSConv2d(3, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        WSConv2d(16, 32, 3, stride=2, padding=1),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
    )
    return Classifier(body, 32)


def spectral() -> nn.Module:
    return Classifier(nn.Sequential(SNBlock(3, 16), SNBlock(16, 16), nn.LeakyReLU(0.2)), 16)


def densenet() -> nn.Module:
    transition = nn.Sequential(
        nn.BatchNorm2d(32), nn.ReLU(inplace=True), nn.Conv2d(32, 16, 1, bias=False), nn.AvgPool2d(2)
    )
    body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), DenseBlock(8), transition, DenseBlock(16))
    return Classifier(nn.Sequential(body, nn.BatchNorm2d(40), nn.ReLU(inplace=True)), 40)


def inception() -> nn.Module:
    return Classifier(nn.Sequential(conv_bn(3, 16, stride=2), Inception(16), Inception(40)), 40)


def mobilenet() -> nn.Module:
    body = nn.Sequential(conv_bn(3, 8, stride=2), depthwise_separable(8, 16), depthwise_separable(16, 32, 2))
    return Classifier(body, 32)


def resnext() -> nn.Module:
    return Classifier(nn.Sequential(conv_bn(3, 16, stride=2), ResNeXtBlock(16), ResNeXtBlock(16)), 16)


def repvgg() -> nn.Module:
    return Classifier(nn.Sequential(RepVGGBlock(3, 16, 2), RepVGGBlock(16, 16), RepVGGBlock(16, 32, 2)), 32)


MODELS: dict[str, Callable[[], Call]] = {
    "groupnorm-resnet": lambda: Call(groupnorm_resnet(), (image(),)),
    "weight-standardised": lambda: Call(weight_standardised(), (image(),)),
    "spectral-norm": lambda: Call(spectral(), (image(),)),
    "densenet": lambda: Call(densenet(), (image(),)),
    "inception": lambda: Call(inception(), (image(),)),
    "mobilenet": lambda: Call(mobilenet(), (image(),)),
    "resnext": lambda: Call(resnext(), (image(),)),
    "repvgg": lambda: Call(repvgg(), (image(),)),
}

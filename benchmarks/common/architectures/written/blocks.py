"""Convolutional classifiers with gates, shuffles, kernels made on the fly, buffers, or a context around a part."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import Call
from .inputs import image
from .vision import Classifier, conv_bn


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    """The unit of ShuffleNet V2 (Ma et al. 2018): half of the channels pass, all are shuffled."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, half = stride, outputs // 2
        source = inputs if stride > 1 else half
        if stride > 1:
            self.branch1 = nn.Sequential(
                nn.Conv2d(source, source, 3, stride, padding=1, groups=source, bias=False),
                nn.BatchNorm2d(source),
                *conv_bn(source, half, 1),
            )
        self.branch2 = nn.Sequential(
            *conv_bn(source, half, 1),
            nn.Conv2d(half, half, 3, stride, padding=1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            *conv_bn(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            x1, x2 = x.chunk(2, dim=1)
            out = torch.cat((x1, self.branch2(x2)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return channel_shuffle(out, 2)


class SELayer(nn.Module):
    """Squeeze and excitation (Hu et al. 2018) with linear layers."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // reduction, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(channels // reduction, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = self.avg_pool(x).view(b, c)
        y = self.fc(y).view(b, c, 1, 1)
        return x * y.expand_as(x)


class CBAM(nn.Module):
    """Channel, then spatial attention (Woo et al. 2018)."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels // reduction, channels, 1, bias=False),
        )
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        avg = self.mlp(F.adaptive_avg_pool2d(x, 1))
        top = self.mlp(F.adaptive_max_pool2d(x, 1))
        x = torch.sigmoid(avg + top) * x
        mean = torch.mean(x, dim=1, keepdim=True)
        peak, _ = torch.max(x, dim=1, keepdim=True)
        return torch.sigmoid(self.spatial(torch.cat([mean, peak], dim=1))) * x


class Residual(nn.Module):
    """A basic block, with something behind its second norm."""

    def __init__(self, channels: int, behind: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = conv_bn(channels, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.behind = behind or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.behind(self.bn2(self.conv2(self.conv1(x))))
        return F.relu(out + x, inplace=True)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, drops the branch of some samples."""

    def __init__(self, drop_prob: float = 0.1) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1 - self.drop_prob
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * mask.div_(keep)


class Involution(nn.Module):
    """A kernel for each pixel, made from that pixel (Li et al. 2021)."""

    def __init__(self, channels: int, kernel: int = 3, group_channels: int = 4) -> None:
        super().__init__()
        self.kernel, self.channels, self.group_channels = kernel, channels, group_channels
        self.groups = channels // group_channels
        self.reduce = conv_bn(channels, channels // 4, 1)
        self.span = nn.Conv2d(channels // 4, kernel**2 * self.groups, 1)
        self.unfold = nn.Unfold(kernel, 1, (kernel - 1) // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.span(self.reduce(x))
        b, _, h, w = weight.shape
        weight = weight.view(b, self.groups, self.kernel**2, h, w).unsqueeze(2)
        out = self.unfold(x).view(b, self.groups, self.group_channels, self.kernel**2, h, w)
        return (weight * out).sum(dim=3).view(b, self.channels, h, w)


class DynamicConv2d(nn.Module):
    """A mixture of kernels for each sample, run as one grouped convolution (Yang et al. 2019)."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, experts: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(experts, outputs, inputs, kernel, kernel))
        self.routing = nn.Linear(inputs, experts)
        self.padding = kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        routing = torch.softmax(self.routing(x.mean(dim=(2, 3))), dim=1)
        experts, outputs = self.weight.shape[:2]
        weight = torch.mm(routing, self.weight.view(experts, -1))
        weight = weight.view(b * outputs, c, *self.weight.shape[-2:])
        out = F.conv2d(x.reshape(1, b * c, h, w), weight, padding=self.padding, groups=b)
        return out.view(b, outputs, h, w)


class FrozenBatchNorm2d(nn.Module):
    """A batch norm whose four vectors are buffers, as detectors use it."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.rand(channels) + 0.5)
        self.register_buffer("bias", 0.3 * torch.randn(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


class Buffered(nn.Module):
    """Normalises its input by buffers, and scales channels in the middle by one."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.rand(width) + 0.5)
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
        self.norm = FrozenBatchNorm2d(width)
        self.fc = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.std
        x = F.relu(self.conv1(x)) * self.scale[None, :, None, None]
        x = F.relu(self.norm(self.conv2(x)))
        return self.fc(x.mean([2, 3]))


class Checkpointed(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = conv_bn(3, width, stride=2)
        self.blocks = nn.ModuleList([Residual(width), Residual(width)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return x


class Autocast(nn.Module):
    """A part that must not run in half precision."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = conv_bn(3, width, stride=2)
        self.block = Residual(width)
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        with torch.autocast(device_type="cpu", enabled=False):
            x = self.block(x)
        return self.head(x)


class Float32Gate(nn.Module):
    """A gate computed in float32, whatever the features' dtype."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = conv_bn(3, width, stride=2)
        self.logits = nn.Conv2d(width, width, 1)
        self.head = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = self.logits(x)
        with torch.autocast(device_type=x.device.type, dtype=torch.bfloat16, enabled=False):
            gate = torch.softmax(gate.float().flatten(2), dim=-1).view_as(gate)
        return self.head(x * gate.to(x.dtype))


def shufflenet() -> nn.Module:
    body = nn.Sequential(conv_bn(3, 8, stride=2), ShuffleUnit(8, 16, 2), ShuffleUnit(16, 16, 1))
    return Classifier(nn.Sequential(body, conv_bn(16, 32, 1)), 32)


def residual(behind: Callable[[], nn.Module]) -> nn.Module:
    return Classifier(nn.Sequential(conv_bn(3, 16, stride=2), Residual(16, behind()), Residual(16, behind())), 16)


MODELS: dict[str, Callable[[], Call]] = {
    "shufflenet-v2": lambda: Call(shufflenet(), (image(),)),
    "senet": lambda: Call(residual(lambda: SELayer(16)), (image(),)),
    "cbam": lambda: Call(residual(lambda: CBAM(16)), (image(),)),
    "stochastic-depth": lambda: Call(residual(DropPath), (image(),)),
    "involution": lambda: Call(residual(lambda: Involution(16)), (image(),)),
    "dynamic-conv": lambda: Call(residual(lambda: DynamicConv2d(16, 16)), (image(),)),
    "channel-buffers": lambda: Call(Buffered(), (image(),)),
    "checkpoint": lambda: Call(Classifier(Checkpointed(), 16), (image(),)),
    "autocast-off": lambda: Call(Autocast(), (image(size=16),)),
    "autocast-float32": lambda: Call(Float32Gate(), (image(size=16),)),
}

"""The VGGs of Simonyan and Zisserman 2015 as CIFAR takes them: batch norm after every convolution, one linear layer.

VGG16 at width 1 has 14.7 M parameters. The last maps are averaged over space, 1x1 at five poolings of 32x32, so that a
network that has lost a pooling still fits its classifier.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

STAGES = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # convolutions before each pooling
WIDTHS = (64, 128, 256, 512, 512)


class Vgg(nn.Module):
    """``features``: convolution, batch norm, ReLU, and a pooling after each of five stages; ``classifier``: linear."""

    def __init__(self, depth: int = 16, classes: int = 10, width: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for count, size in zip(STAGES[depth], WIDTHS, strict=True):
            for _ in range(count):
                outputs = round(size * width)
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features, self.classifier = nn.Sequential(*layers), nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, 3, 32, 32] to logits [N, classes]."""
        return self.classifier(self.features(x).mean((2, 3)))


def save_half(model: nn.Module, path: Path) -> None:
    """Writes the floating-point weights as float16; whole numbers stay what they are."""
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.cpu().contiguous() for k, v in state.items()}, path)


def load_half(model: nn.Module, path: Path) -> None:
    """Reads what `save_half` wrote into a model of the same architecture, at the model's own precision."""
    with torch.no_grad():
        model.load_state_dict(load_file(path), strict=True)

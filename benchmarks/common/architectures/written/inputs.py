"""Example inputs with two samples that differ: noise, with a contrast and an offset of its own in every sample."""

from __future__ import annotations

import torch
from torch import Tensor


def image(channels: int = 3, size: int = 32) -> Tensor:
    """Returns float32 ``[2, channels, size, size]``."""
    return _noise(2, channels, size, size)


def sequence(length: int, width: int) -> Tensor:
    """Returns float32 ``[2, length, width]``."""
    return _noise(2, length, width)


def token_ids(length: int = 8, vocabulary: int = 32) -> Tensor:
    """Returns int64 ``[2, length]``."""
    return torch.randint(1, vocabulary, (2, length))


def _noise(*shape: int) -> Tensor:
    each = (shape[0],) + (1,) * (len(shape) - 1)
    return torch.randn(shape) * (0.5 + torch.rand(each)) + torch.randn(each)

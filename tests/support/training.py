"""A small net with everything that has a state of its own, data that are random, and recipes."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fxprune.training import Recipe
from tests.models.stateful import Net

SGD = Recipe(epochs=3, lr=0.05, optimizer="sgd", weight_decay=1e-3, batch_size=8)


ADAMW = Recipe(epochs=3, lr=0.01, warmup=0.5, clip_norm=1.0, batch_size=8)


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Augments by all three global generators; raises what it is told to, at the so-many-th sample."""

    def __init__(self, size: int = 36) -> None:
        draw = torch.Generator().manual_seed(5)
        self.x = torch.randn(size, 1, 4, 4, generator=draw)
        self.y = torch.randint(3, (size,), generator=draw)
        self.left: int | None = None
        self.error: BaseException = KeyboardInterrupt()

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise self.error
        noise = torch.rand(()) + random.random() + float(np.random.rand())
        return self.x[index] + 0.1 * noise, self.y[index]


def net(seed: int = 0, **kwargs: Any) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net(**kwargs)


def pairs(size: int = 16) -> list[tuple[Tensor, Tensor]]:
    data = Noisy(size)
    return list(zip(data.x.split(8), data.y.split(8), strict=True))


def digest(model: nn.Module) -> str:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    found = hashlib.sha256()
    for name, tensor in tensors:
        found.update(name.encode() + tensor.detach().numpy().tobytes())
    return found.hexdigest()

"""CIFAR-10 as normalised tensors."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from .data import shared_file

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def test_set(count: int = 10_000) -> tuple[Tensor, Tensor]:
    """Returns the first ``count`` test images (float32 [n, 3, 32, 32], normalised) and their labels (int64 [n])."""
    return _load("cifar10-test.npz", count)


def train_set(count: int | None = None, shard: int = 0) -> tuple[Tensor, Tensor]:
    """Returns the first ``count`` images of one train shard (0, 1 or 2) and their labels, as ``test_set``."""
    return _load(f"cifar10-train-{shard}.npz", count)


def batches(images: Tensor, labels: Tensor, size: int = 256) -> list[tuple[Tensor, Tensor]]:
    """Returns (images, labels) pairs of at most ``size`` samples each."""
    return list(zip(images.split(size), labels.split(size), strict=True))


def augmented(images: Tensor, labels: Tensor, size: int = 128) -> DataLoader[Any]:
    """Returns a loader of training batches, drawn anew in every pass: shuffled, cropped from a border of 4, flipped.

    The border is grey, the mean of normalised images. All draws come from torch's global generator.
    """

    def batch(indices: list[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor(indices)
        windows = F.pad(images[chosen], (4, 4, 4, 4)).unfold(2, 32, 1).unfold(3, 32, 1)  # [n, 3, 9, 9, 32, 32]
        top, left = torch.randint(9, (2, len(chosen)))
        x = windows[torch.arange(len(chosen)), :, top, left]
        return torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x), labels[chosen]

    return DataLoader(range(len(labels)), size, shuffle=True, collate_fn=batch)  # type: ignore[arg-type]


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch: int = 250) -> float:
    """Returns the top-1 accuracy in percent of a model in evaluation mode."""
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches(images, labels, batch))
    return 100.0 * right / len(labels)


def _load(name: str, count: int | None) -> tuple[Tensor, Tensor]:
    path = shared_file(f"data/cifar10/{name}")
    pixels, labels = _decoded(path)
    images = torch.from_numpy(pixels[:count]).permute(0, 3, 1, 2).float().div_(255)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return images.sub_(mean).div_(std), torch.from_numpy(labels[:count].astype(np.int64))


def _decoded(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Decodes a shard's PNG files once; the uint8 pixels are kept in the temporary folder for the next run."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:16]
    cache = Path(tempfile.gettempdir()) / f"fxprune-cifar10-{key}.npz"
    if not cache.exists():
        _decode(path, cache)
    with np.load(cache) as stored:
        return stored["pixels"], stored["labels"]


def _decode(path: Path, cache: Path) -> None:
    from PIL import Image

    with np.load(path) as shard:
        png, offsets, labels = shard["png"].tobytes(), shard["offsets"], shard["labels"]
    bounds = itertools.pairwise(offsets)
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(png[a:b])).convert("RGB")) for a, b in bounds])
    partial = cache.with_suffix(f".{os.getpid()}.npz")
    np.savez(partial, pixels=pixels, labels=labels)
    partial.replace(cache)  # atomic: a run beside this one never reads half a file

"""A small DeiT for CIFAR-10, trained here: timm's `VisionTransformer`, 65 tokens of 192 channels, five blocks, 2.2 M parameters.

``python -m common.deit`` in this folder trains it anew (about two hours on one core that computes bfloat16) and writes its weights. It
is taught by a convolutional network, as DeiT is (Touvron et al. 2021, arXiv 2012.12877), here the shared ResNet-20, by soft labels. For
most of its epochs it sees half of the patches (PatchDropout, Liu et al. 2022, arXiv 2208.07220), which halves their cost.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import fxprune

from . import ROOT, cifar, resnet_cifar
from .vgg import load_half, save_half

WEIGHTS = ROOT / "benchmarks" / "weights" / "deit-cifar10.safetensors"
PHASES = ((0.5, 24, 1e-3, 2.0), (0.0, 4, 2e-4, 0.25))  # patches dropped, epochs, highest rate, epochs of warmup


def deit(pretrained: bool = True) -> nn.Module:
    """Returns the network in evaluation mode: [n, 3, 32, 32] to logits [n, 10]."""
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(img_size=32, patch_size=4, embed_dim=192, depth=5, num_heads=3, num_classes=10)
    if pretrained:
        load_half(model, WEIGHTS)
    return model.eval()


def train(images: Tensor, labels: Tensor, cache: Path, seed: int = 0) -> nn.Module:
    """Returns the network trained on images [n, 3, 32, 32] and labels [n]; goes on after the last epoch that ``cache`` holds."""
    torch.manual_seed(seed)
    model, teacher = deit(pretrained=False), resnet_cifar.resnet(20)
    for number, (dropped, epochs, lr, warmup) in enumerate(PHASES):
        model.patch_drop = _patches(model, dropped)
        history = fxprune.finetune(
            model,
            cifar.augmented(images, labels),
            teacher=teacher,
            epochs=epochs,
            lr=lr,
            warmup=warmup,
            weight_decay=0.05,
            label_smoothing=0.1,
            distill_weight=0.7,
            temperature=2.0,
            clip_norm=1.0,
            mixed_precision="bf16",
            checkpoint_dir=cache / f"phase{number}",
            seed=seed + number,
            progress=False,
        )
        print(history, flush=True)
    return model.eval()


def _patches(model: nn.Module, dropped: float) -> nn.Module:
    from timm.layers import PatchDropout

    return PatchDropout(dropped, num_prefix_tokens=1) if dropped else nn.Identity()


def main() -> None:
    """Trains the network and writes its weights."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--images", type=int, default=50_000)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "fxprune-deit")
    made.add_argument("--to", type=Path, default=WEIGHTS)
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    shards = [cifar.train_set(options.images // 3 + 1, shard) for shard in range(3)]
    images, labels = (torch.cat(parts)[: options.images] for parts in zip(*shards, strict=True))
    model = train(images, labels, options.cache)
    save_half(model, options.to)
    load_half(model, options.to)
    print(f"top-1 {cifar.accuracy(model, *cifar.test_set()):.2f}")


if __name__ == "__main__":
    main()

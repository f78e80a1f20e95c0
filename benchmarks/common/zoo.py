"""The networks of the benchmark tables: how to build each, what to feed it, which other size it takes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = Tensor | dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Entry:
    """One network of the list."""

    name: str
    build: Callable[[], nn.Module]  # random weights, evaluation mode
    kind: str = "image"  # "image", "video" or "text": what batch() makes
    size: int = 224  # height and width, or the sequence length
    other: int | None = None  # another size that the original and its capture accept, None where it is fixed
    attention: tuple[str, ...] = ()  # projections whose heads can go: one name pattern each
    fast: bool = False  # cheap enough for the tests
    names: tuple[str, ...] = field(default=("x",))  # the forward's arguments that batch() fills

    def batch(self, count: int, seed: int = 0, size: int | None = None) -> Batch:
        """Returns ``count`` samples: a tensor of images or clips (float32), or a dict of token tensors (int64).

        Images are smooth random fields of different contrast and offset with noise on top, so that pooled
        features differ from sample to sample as they do for photographs.
        """
        generator = torch.Generator().manual_seed(seed)
        edge = self.size if size is None else size
        if self.kind == "text":
            ids = torch.randint(0, 200, (count, edge), generator=generator)
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.kind == "video":
            return images(count * 8, edge, generator).unflatten(0, (count, 8)).transpose(1, 2).contiguous()
        return images(count, edge, generator)

    def dynamic_shapes(self) -> Any:
        """Returns ``dynamic_shapes`` in which the batch and the size are dynamic, as ``torch.export`` takes it."""
        auto = torch.export.Dim.AUTO
        if self.kind == "text":
            return {name: {0: auto, 1: auto} for name in self.names}
        axes = (0, 2, 3) if self.kind == "image" else (0, 3, 4)
        return {self.names[0]: dict.fromkeys(axes, auto)}


def images(count: int, edge: int, generator: torch.Generator) -> Tensor:
    """Returns random fields, smooth with noise on top, of different contrast and offset, ``[count, 3, edge, edge]``."""
    coarse = torch.randn(count, 3, max(2, edge // 32), max(2, edge // 32), generator=generator)
    smooth = F.interpolate(coarse, size=(edge, edge), mode="bilinear", align_corners=False)
    noise = torch.randn(count, 3, edge, edge, generator=generator)
    contrast = 0.75 + 0.5 * torch.rand(count, 3, 1, 1, generator=generator)
    offset = 0.4 * torch.randn(count, 3, 1, 1, generator=generator)
    return contrast * (smooth + 0.5 * noise) + offset


def call(model: nn.Module, batch: Batch) -> Any:
    """Runs a model on a batch: keyword arguments from a dict, one positional argument from a tensor."""
    return model(**batch) if isinstance(batch, dict) else model(batch)


def cast(batch: Batch, dtype: torch.dtype) -> Batch:
    """Returns the batch with its floating-point tensors in another dtype."""
    if isinstance(batch, dict):
        return {key: value.to(dtype) if value.is_floating_point() else value for key, value in batch.items()}
    return batch.to(dtype)


def tensors(output: Any) -> list[Tensor]:
    """Returns the floating-point tensors of a model's output, in order, containers opened (caches left out)."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, dict):
        return [leaf for key, value in output.items() if key != "past_key_values" for leaf in tensors(value)]
    if isinstance(output, (list, tuple)):
        return [leaf for value in output for leaf in tensors(value)]
    return []


def select(names: list[str] | None = None, *, fast: bool = False) -> list[Entry]:
    """Returns the entries of the given names (all of the list by default; with ``fast`` only those fit for tests).

    Raises:
        KeyError: a name that neither the list has nor `QUICK`.
    """
    if names:
        return [QUICK if name == QUICK.name else ZOO[name] for name in names]
    return [entry for entry in ZOO.values() if entry.fast or not fast]


def _torchvision(path: str, **options: Any) -> nn.Module:
    import torchvision.models

    builder = functools.reduce(getattr, path.split("."), torchvision.models)
    return builder(weights=None, **options).eval()


def _bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=200,
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        intermediate_size=256,
        max_position_embeddings=64,
    )
    return BertModel(config).eval()


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        intermediate_size=256,
        image_size=64,
        patch_size=8,
        num_labels=10,
    )
    return ViTForImageClassification(config).eval()


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=200,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


def _vision(name: str, path: str | None = None, options: dict[str, Any] | None = None, **fields: Any) -> Entry:
    return Entry(name, functools.partial(_torchvision, path or name, **(options or {})), **fields)


#: What quick runs take, of no table.
QUICK = _vision("resnet18_64", "resnet18", size=64, other=96)

_NO_BACKBONE = {"weights_backbone": None}
_NO_INIT = {"init_weights": False}  # the weights are randomised anyway, and this initialisation takes many seconds
_QKV = ("*qkv*", "*in_proj*")

ZOO: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        _vision("alexnet", other=192),
        _vision("vgg16_bn", other=192),
        _vision("resnet18", other=192, fast=True),
        _vision("resnet50", other=192),
        _vision("resnext50_32x4d", other=192),
        _vision("densenet121", other=192),
        _vision("mobilenet_v2", other=192, fast=True),
        _vision("mobilenet_v3_large", other=192),
        _vision("shufflenet_v2_x1_0", other=192, fast=True),
        _vision("efficientnet_b0", other=192),
        _vision("regnet_y_400mf", other=192, fast=True),
        _vision("googlenet", options=_NO_INIT, other=192),
        _vision("inception_v3", options=_NO_INIT, size=299, other=235),
        _vision("squeezenet1_1", other=192, fast=True),
        _vision("convnext_tiny", other=192),
        _vision("vit_b_16", attention=_QKV),
        _vision("swin_t", attention=_QKV),
        _vision("maxvit_t", attention=_QKV),
        _vision("deeplabv3_resnet50", "segmentation.deeplabv3_resnet50", _NO_BACKBONE, size=128, other=96),
        _vision("fcn_resnet50", "segmentation.fcn_resnet50", _NO_BACKBONE, size=128, other=96),
        _vision("r3d_18", "video.r3d_18", kind="video", size=112, other=96),
        Entry("bert", _bert, "text", 16, 24, ("*query*",), True, ("input_ids", "attention_mask")),
        Entry("vit", _vit, "image", 64, None, ("*query*", "*q_proj*"), True, ("pixel_values",)),
        Entry("llama_gqa", _llama, "text", 16, 24, ("*q_proj*",), True, ("input_ids", "attention_mask")),
    )
}

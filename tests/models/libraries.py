"""Networks of torchvision and transformers, as small as they can be built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torchvision
from torch import nn

TEXT = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
}
IMAGE = {
    "image_size": 16,
    "patch_size": 8,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 16,
    "mlp_dim": 32,
    "num_classes": 5,
}
WINDOWS = {
    "patch_size": [4, 4],
    "embed_dim": 8,
    "depths": [2, 2],
    "num_heads": [1, 2],
    "window_size": [4, 4],
    "num_classes": 5,
}


def transformer(name: str, arguments: Mapping[str, Any] | None = None, **settings: Any) -> nn.Module:
    """Returns a model of transformers by its class, such as BertModel or LlamaForCausalLM.

    Args:
        name: of the class.
        arguments: of the model itself.
        settings: of its configuration, where they differ from `TEXT`.
    """
    build = getattr(pytest.importorskip("transformers"), name)
    return build(build.config_class(**TEXT | settings), **arguments or {})


def vit(**settings: Any) -> nn.Module:
    """Returns torchvision's vision transformer, for images of 16 by 16 unless the settings say otherwise."""
    return torchvision.models.VisionTransformer(**IMAGE | settings)


def swin(**settings: Any) -> nn.Module:
    """Returns torchvision's transformer of shifted windows, for images of 32 by 32 unless the settings say otherwise."""
    return torchvision.models.SwinTransformer(**WINDOWS | settings)

"""Layers of known kinds in place: what they say of their own sizes follows from their tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

Facts = dict[str, Any]


def told(model: nn.Module) -> None:
    """Has every layer of a known kind, or of a class made of one, say what its tensors are."""
    for module in model.modules():
        for kind, facts in _KINDS.items():
            if isinstance(module, kind):
                for name, value in facts(module).items():
                    if name in module.__dict__:
                        module.__dict__[name] = value
                break


def _conv(module: Any) -> Facts:
    """Of the groups: each reads and makes as many channels as its weight says."""
    made, read = module.weight.shape[:2]
    if module.transposed:
        made, read = read, made
        return {"in_channels": read, "out_channels": made * module.groups}
    return {"in_channels": read * module.groups, "out_channels": made}


def _linear(module: Any) -> Facts:
    return {"out_features": module.weight.shape[0], "in_features": module.weight.shape[1]}


def _bilinear(module: Any) -> Facts:
    made, one, two = module.weight.shape
    return {"out_features": made, "in1_features": one, "in2_features": two}


def _embedding(module: Any) -> Facts:
    return {"num_embeddings": module.weight.shape[0], "embedding_dim": module.weight.shape[1]}


def _batch_norm(module: Any) -> Facts:
    held = module.weight if module.weight is not None else module.running_mean
    return {} if held is None else {"num_features": held.shape[0]}


def _group_norm(module: Any) -> Facts:
    return {} if module.weight is None else {"num_channels": module.weight.shape[0]}


def _layer_norm(module: Any) -> Facts:
    weight: Tensor | None = module.weight
    return {} if weight is None else {"normalized_shape": tuple(weight.shape)}


def _recurrent(module: Any) -> Facts:
    hidden = module.weight_hh_l0.shape
    facts = {"input_size": module.weight_ih_l0.shape[1], "hidden_size": hidden[0] // _gates(module)}
    return facts | ({"proj_size": hidden[1]} if module.proj_size else {})


def _cell(module: Any) -> Facts:
    return {"input_size": module.weight_ih.shape[1], "hidden_size": module.weight_hh.shape[1]}


def _gates(module: nn.RNNBase) -> int:
    return {"LSTM": 4, "GRU": 3}.get(module.mode, 1)


def _attention(module: Any) -> Facts:
    held = module.in_proj_weight
    keys, values = (held, held) if held is not None else (module.k_proj_weight, module.v_proj_weight)
    return {"kdim": keys.shape[1], "vdim": values.shape[1]}


def _encoder(module: Any) -> Facts:
    """Padding is taken out of nested tensors only where the number of heads is even."""
    attention = getattr(module.layers[0], "self_attn", None) if len(module.layers) else None
    odd = getattr(attention, "num_heads", 2) % 2 == 1
    return {"use_nested_tensor": False} if odd else {}


def _prelu(module: Any) -> Facts:
    return {"num_parameters": module.weight.numel()}


_KINDS: dict[Any, Callable[[Any], Facts]] = {
    _ConvNd: _conv,
    nn.Linear: _linear,
    nn.Bilinear: _bilinear,
    (nn.Embedding, nn.EmbeddingBag): _embedding,
    _NormBase: _batch_norm,
    nn.GroupNorm: _group_norm,
    (nn.LayerNorm, nn.RMSNorm): _layer_norm,
    nn.RNNBase: _recurrent,
    nn.RNNCellBase: _cell,
    nn.PReLU: _prelu,
    nn.MultiheadAttention: _attention,
    nn.TransformerEncoder: _encoder,
}

"""Attention in tiny models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models.fn import Fn
from tests.models.ops.case import Case

T = (3, 7, 5)


def _attention(
    *,
    heads: int = 3,
    groups: int | None = None,
    inner: int = 4,
    values: int | None = None,
    mask: Any = None,
    cross: bool = False,
    fused: bool = False,
    **options: Any,
) -> nn.Module:
    """Attention of [batch, tokens, 5]: ``groups`` key and value heads, ``mask(m, x)`` added."""
    groups, values = groups or heads, values or inner
    parts: dict[str, Any] = {"o": nn.Linear(heads * values, 2)}
    if fused:
        parts["qkv"] = nn.Linear(5, 3 * heads * inner)
    else:
        parts |= {
            "q": nn.Linear(5, heads * inner),
            "k": nn.Linear(5, groups * inner),
            "v": nn.Linear(5, groups * values),
        }
    if mask is not None:
        parts["mask"] = nn.Parameter(torch.randn(mask))

    def split(x: Tensor, heads: int) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)

    def forward(m: Any, x: Tensor, other: Tensor | None = None) -> Tensor:
        source = x if other is None else other
        if fused:
            q, k, v = m.qkv(x).reshape(x.shape[0], -1, 3, heads, inner).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = split(m.q(x), heads), split(m.k(source), groups), split(m.v(source), groups)
        added = m.mask if mask is not None else None
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=added, enable_gqa=groups != heads, **options)
        return m.o(y.transpose(1, 2).flatten(2))

    return Fn(forward, **parts)


def _parts(n: int, *layers: str) -> str:
    return " ".join(f"{x}.weight[0]x{n} {x}.bias[0]x{n}" for x in layers)


CASES = [
    Case(
        "heads",
        _attention,
        [T],
        [
            "3 head: o.weight[1]x4 q.weight[0]x4 q.bias[0]x4 k.weight[0]x4 k.bias[0]x4 v.weight[0]x4 v.bias[0]x4",
            "4 head_dim: q.weight[0]x3 q.bias[0]x3 k.weight[0]x3 k.bias[0]x3",
            "4 head_dim: o.weight[1]x3 v.weight[0]x3 v.bias[0]x3",
        ],
    ),
    Case(
        "cross attention",
        _attention,
        [T, (3, 6, 5)],
        [
            "3 head: o.weight[1]x4 q.weight[0]x4 q.bias[0]x4 k.weight[0]x4 k.bias[0]x4 v.weight[0]x4 v.bias[0]x4",
            "4 head_dim: q.weight[0]x3 q.bias[0]x3 k.weight[0]x3 k.bias[0]x3",
            "4 head_dim: o.weight[1]x3 v.weight[0]x3 v.bias[0]x3",
        ],
    ),
    Case(
        "values of another width",
        lambda: _attention(values=2),
        [T],
        [
            "3 head: o.weight[1]x2 q.weight[0]x4 q.bias[0]x4 k.weight[0]x4 k.bias[0]x4 v.weight[0]x2 v.bias[0]x2",
            "4 head_dim: q.weight[0]x3 q.bias[0]x3 k.weight[0]x3 k.bias[0]x3",
            "2 head_dim: o.weight[1]x3 v.weight[0]x3 v.bias[0]x3",
        ],
    ),
    Case(
        "one head",
        lambda: _attention(heads=1),
        [T],
        ["4 head_dim: o.weight[1] v.weight[0] v.bias[0]", "4 head_dim: q.weight[0] q.bias[0] k.weight[0] k.bias[0]"],
    ),
    Case(
        "fused",
        lambda: _attention(fused=True),
        [T],
        [
            "3 head: o.weight[1]x4 qkv.weight[0]x12 qkv.bias[0]x12",
            "4 head_dim: qkv.weight[0]x6 qkv.bias[0]x6",
            "4 head_dim: o.weight[1]x3 qkv.weight[0]x3 qkv.bias[0]x3",
        ],
    ),
    Case(
        "causal",
        lambda: _attention(is_causal=True),
        [T],
        [
            "3 head: o.weight[1]x4 q.weight[0]x4 q.bias[0]x4 k.weight[0]x4 k.bias[0]x4 v.weight[0]x4 v.bias[0]x4",
            "4 head_dim: q.weight[0]x3 q.bias[0]x3 k.weight[0]x3 k.bias[0]x3",
            "4 head_dim: o.weight[1]x3 v.weight[0]x3 v.bias[0]x3",
        ],
    ),
    Case(
        "scale given",
        lambda: _attention(scale=0.3),
        [T],
        [
            "3 head: o.weight[1]x4 q.weight[0]x4 q.bias[0]x4 k.weight[0]x4 k.bias[0]x4 v.weight[0]x4 v.bias[0]x4",
            "4 head_dim: q.weight[0]x3 q.bias[0]x3 k.weight[0]x3 k.bias[0]x3",
            "4 head_dim: o.weight[1]x3 v.weight[0]x3 v.bias[0]x3",
        ],
    ),
    Case(
        "grouped queries",
        lambda: _attention(heads=6, groups=2),
        [T],
        [
            "4 head_dim: q.weight[0]x6 q.bias[0]x6 k.weight[0]x2 k.bias[0]x2",
            "2 kv_group: o.weight[1]x12 q.weight[0]x12 q.bias[0]x12 k.weight[0]x4 k.bias[0]x4 v.weight[0]x4 v.bias[0]x4",
            "4 head_dim: o.weight[1]x6 v.weight[0]x2 v.bias[0]x2",
            "3 head: o.weight[1]x8 q.weight[0]x8 q.bias[0]x8",
        ],
    ),
    Case(
        "multi-query",
        lambda: _attention(heads=3, groups=1),
        [T],
        [
            "4 head_dim: q.weight[0]x3 q.bias[0]x3 k.weight[0] k.bias[0]",
            "4 head_dim: o.weight[1]x3 v.weight[0] v.bias[0]",
            "3 head: o.weight[1]x4 q.weight[0]x4 q.bias[0]x4",
        ],
    ),
    Case(
        "mask of lengths",
        lambda: _attention(mask=(7, 7)),
        [T],
        [
            "3 head: o.weight[1]x4 q.weight[0]x4 q.bias[0]x4 k.weight[0]x4 k.bias[0]x4 v.weight[0]x4 v.bias[0]x4",
            "4 head_dim: q.weight[0]x3 q.bias[0]x3 k.weight[0]x3 k.bias[0]x3",
            "4 head_dim: o.weight[1]x3 v.weight[0]x3 v.bias[0]x3",
        ],
    ),
    Case(
        "mask of each head",
        lambda: _attention(mask=(1, 3, 7, 7)),
        [T],
        [
            "3 head: mask[1] o.weight[1]x4 q.weight[0]x4 q.bias[0]x4 k.weight[0]x4 k.bias[0]x4 v.weight[0]x4 v.bias[0]x4",
            "4 head_dim: q.weight[0]x3 q.bias[0]x3 k.weight[0]x3 k.bias[0]x3",
            "4 head_dim: o.weight[1]x3 v.weight[0]x3 v.bias[0]x3",
        ],
    ),
    Case(
        "mask for all heads",
        lambda: _attention(mask=(1, 1, 7, 7)),
        [T],
        [
            "3 head: o.weight[1]x4 q.weight[0]x4 q.bias[0]x4 k.weight[0]x4 k.bias[0]x4 v.weight[0]x4 v.bias[0]x4",
            "4 head_dim: q.weight[0]x3 q.bias[0]x3 k.weight[0]x3 k.bias[0]x3",
            "4 head_dim: o.weight[1]x3 v.weight[0]x3 v.bias[0]x3",
        ],
    ),
    Case(
        "MultiheadAttention",
        lambda: Fn(
            lambda m, x: m.o(m.a(x, x, x, need_weights=False)[0]),
            a=nn.MultiheadAttention(6, 2, batch_first=True),
            o=nn.Linear(6, 2),
        ),
        [(3, 4, 6)],
        [
            "6 channel: a.out_proj.weight[0] a.out_proj.bias[0] o.weight[1]",
            "2 head: a.in_proj_weight[0]x9 a.in_proj_bias[0]x9 a.out_proj.weight[1]x3",
            "3 head_dim: a.in_proj_weight[0]x4 a.in_proj_bias[0]x4",
            "3 head_dim: a.in_proj_weight[0]x2 a.in_proj_bias[0]x2 a.out_proj.weight[1]x2",
        ],
    ),
    Case(
        "MultiheadAttention with weights",
        lambda: Fn(lambda m, x: m.a(x, x, x), a=nn.MultiheadAttention(6, 2, batch_first=True)),
        [(3, 4, 6)],
        [
            "2 head: a.in_proj_weight[0]x9 a.in_proj_bias[0]x9 a.out_proj.weight[1]x3",
            "3 head_dim: a.in_proj_weight[0]x4 a.in_proj_bias[0]x4",
            "3 head_dim: a.in_proj_weight[0]x2 a.in_proj_bias[0]x2 a.out_proj.weight[1]x2",
        ],
        statistic=True,
    ),
]

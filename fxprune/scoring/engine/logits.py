"""Logits of attention: how far they are apart, which is what an error of them counts against."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.ops.registry import bind, is_kind, rule_at

#: What lies so far below the largest logit is masked.
_MASKED = 50.0


def softmax_behind(node: fx.Node) -> fx.Node | None:
    """Returns the op that takes the softmax of a product, moved, scaled and masked at most: itself where it is attention as a whole."""
    if is_kind(node, "attention"):
        return node
    while len(node.users) == 1:
        user = next(iter(node.users))
        rule = rule_at(user)
        if is_kind(user, "softmax"):
            return user
        if rule is None or not (rule.kind in ("addition", "elementwise", "reshape") or rule.conducts or rule.carries):
            return None
        node = user
    return None


def spread(node: fx.Node, values: Mapping[fx.Node, Any]) -> float:
    """Returns the variance of the logits over what each query may attend to: a mean over the queries of the first sample.

    An error of logits counts as it is, and not as a share of them: ``softmax`` of what is far apart changes more.

    Args:
        node: an op that takes a softmax.
        values: those that are alive there, ``[...]`` each.
    """
    a = bind(node)
    if not is_kind(node, "attention"):
        logits = values[node.all_input_nodes[0]][:1].movedim(a.dim, -1).float()
    else:
        logits = _of_attention(a, values)
    if logits is None:
        return 1.0
    allowed = logits > logits.amax(dim=-1, keepdim=True) - _MASKED
    count = allowed.sum(dim=-1, keepdim=True)
    mean = torch.where(allowed, logits, 0.0).sum(dim=-1, keepdim=True) / count.clamp_min(1)
    variance = torch.where(allowed, logits - mean, 0.0).square().sum(dim=-1) / count.clamp_min(1)[..., 0]
    several = count[..., 0] > 1
    found = float(variance[several].mean()) if several.any() else 1.0
    return found if math.isfinite(found) else 1.0


def _of_attention(a: Any, values: Mapping[fx.Node, Any]) -> Tensor | None:
    """Returns the masked logits of the first sample, ``[..., queries, keys]``; None where heads do not match."""
    query, key = (values[each][:1].float() for each in (a.query, a.key))
    if query.dim() < 3 or query.shape[:-2] != key.shape[:-2]:
        if query.dim() != 4 or query.shape[1] % max(key.shape[1], 1):
            return None
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    logits: Tensor = query @ key.mT * (query.shape[-1] ** -0.5 if a.scale is None else a.scale)
    if a.is_causal:
        logits = logits.masked_fill(torch.ones_like(logits, dtype=torch.bool).triu(1), -math.inf)
    if isinstance(a.attn_mask, fx.Node):
        mask = values[a.attn_mask]
        mask = mask[:1] if mask.dim() == query.dim() else mask
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
    return logits

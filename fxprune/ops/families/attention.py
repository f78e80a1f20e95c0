"""Scaled dot-product attention: heads and head dimensions are channels like any other."""

from __future__ import annotations

import math
from types import SimpleNamespace

from torch import fx

from fxprune.algebra import axes as ax
from fxprune.algebra.axes import Axes, Axis
from fxprune.ops.registry import register_rule
from fxprune.ops.rule import Rule
from fxprune.ops.tracer import Tracer


def _attention(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: q[b, h, l, e], k[b, g, s, e], v[b, g, s, f].  After: one e; h is (g x repeats); f passes; s stays."""
    q, k, v = (t.axes(x, node) for x in (a.query, a.key, a.value))
    batch = [t.relate(node, k_axis, v_axis) for k_axis, v_axis in zip(k[:-2], v[:-2], strict=True)]
    lead = list(q[:-2])
    if a.enable_gqa:
        heads, groups = t.shape(a.query)[-3], t.shape(a.key)[-3]
        group, repeats = t.reshape(node, [lead[-1]], [groups, heads // groups])
        lead[-1] = (*t.relate(node, batch[-1], group), *repeats)
        batch[-1] = lead[-1]
    lead = list(t.broadcast(node, lead, batch))
    inner = t.relate(node, q[-1], k[-1])
    t.freeze(node, (*q[-2], *k[-2], *v[-2]), "query or key length")
    if a.attn_mask is not None:
        _mask(t, node, t.axes(a.attn_mask, node), lead)
    ax.mark(t.channels, ax.joined(lead), "head")
    ax.mark(t.channels, (*inner, *v[-1]), "head_dim")
    scores = math.prod(t.example(a.query)[:-1]) * t.example(a.key)[-2]
    macs = scores * t.example(a.query)[-1]
    t.contract(node, (a.query, len(q) - 1), inner, (*lead, inner), macs, other=(a.key, len(k) - 1))
    t.contract(node, (a.query, len(q) - 1), (), (*lead, v[-1]), scores * t.example(a.value)[-1])
    return (*lead, q[-2], v[-1])


def _mask(t: Tracer, node: fx.Node, mask: Axes, lead: list[Axis]) -> None:
    t.freeze(node, ax.joined(mask[-2:]), "query or key length")
    heads = ((),) * (len(lead) + 2 - len(mask)) + mask[:-2]
    for axis, mask_axis in zip(lead, heads, strict=True):
        if ax.size_of(mask_axis) != 1:
            t.relate(node, axis, mask_axis)


register_rule("scaled_dot_product_attention.default", Rule(_attention, kind="attention"))

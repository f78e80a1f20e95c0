"""Fake quantisation of training that knows of it: elementwise, with a scale and a zero point for all, or for each channel."""

from __future__ import annotations

from types import SimpleNamespace

from torch import fx

from fxprune.algebra import axes as ax
from fxprune.algebra.axes import Axes
from fxprune.ops.constants import Constants
from fxprune.ops.registry import register_rule
from fxprune.ops.rule import Rule, twice
from fxprune.ops.tracer import Tracer


def _quantised(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[b, c], scale[c] along ``axis`` or [1].  After: [b, c]; what is rounded keeps its channels."""
    x = list(t.axes(a.self, node))
    for operand in (a.scale, a.zero_point):
        if not t.is_tensor(operand):
            continue
        own = t.axes(operand, node)
        if hasattr(a, "axis") and own:
            x[a.axis] = t.relate(node, x[a.axis], own[0])
        else:
            t.freeze(node, ax.joined(own), "a scale for all")
    return tuple(x)


def _of_constant(c: Constants, node: fx.Node, a: SimpleNamespace) -> int | None:
    """One scale for all rounds a constant to a constant; one for each channel does where it lies along the channels."""
    dim = c.only(node, a.self)
    return dim if dim is not None and getattr(a, "axis", dim) % c.rank(a.self) == dim else None


_QUANTISED = Rule(_quantised, kind="quantise", constant=_of_constant)

register_rule(
    "fake_quantize_per_tensor_affine.default fake_quantize_per_tensor_affine.tensor_qparams "
    "fake_quantize_per_channel_affine.default _fake_quantize_learnable_per_tensor_affine.default "
    "_fake_quantize_learnable_per_channel_affine.default",
    _QUANTISED,
)
register_rule(
    "fake_quantize_per_tensor_affine_cachemask.default fake_quantize_per_channel_affine_cachemask.default "
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams.default",
    Rule(twice(_quantised), kind="quantise"),
)

"""Activations and all other elementwise work: broadcast, and unite axis by axis."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

from torch import fx, nn

from fxprune.algebra import axes as ax
from fxprune.algebra.axes import Axes
from fxprune.ops.constants import elementwise, kept
from fxprune.ops.layers import FeatureDropout
from fxprune.ops.modules import Layer, Noise, Site
from fxprune.ops.registry import register_rule
from fxprune.ops.rule import Rule, twice
from fxprune.ops.tracer import Tracer


def pointwise(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[b, c, h, w], y[c, 1, 1].  After: the two c are the same channels; the result is [b, c, h, w]."""
    return t.broadcast(node, *(t.axes(operand, node) for operand in node.all_input_nodes if t.is_tensor(operand)))


def _prelu(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    x, w = t.axes(a.self, node), t.axes(a.weight, node)
    if len(x) < 2 or not w or t.shape(a.weight)[0] == 1:
        return x
    return (x[0], t.relate(node, x[1], w[0]), *x[2:])


def _outer(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[m], y[n].  After: [m, n]."""
    return (*t.axes(a.self, node), *t.axes(a.vec2, node))


def _glu(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[b, 2c].  After: the halves are the same channels; the result is [b, c]."""
    x = list(t.axes(a.self, node))
    dim = a.dim % len(x)
    half = t.shape(a.self)[dim] // 2
    first, second = (ax.take(t.channels, x[dim], start, start + half, 1, t.where(node)) for start in (0, half))
    x[dim] = t.relate(node, first, second)
    return tuple(x)


def _of_prelu(site: Site) -> nn.Module:
    return nn.PReLU(site.tensors["weight"].numel(), device="meta")


_ELEMENTWISE = Rule(pointwise, kind="elementwise", constant=elementwise)
_SAME = Rule(pointwise, kind="elementwise", moves=kept, conducts=True)

register_rule("pointwise", _ELEMENTWISE)
register_rule("add.Tensor", replace(_ELEMENTWISE, kind="addition"))
register_rule("mul.Tensor", replace(_ELEMENTWISE, scales=True, powers={"self": 1.0, "other": 1.0}))
register_rule("div.Tensor", replace(_ELEMENTWISE, powers={"self": 1.0, "other": -1.0}))
register_rule("sqrt.default", replace(_ELEMENTWISE, powers={"self": 0.5}))
register_rule("rsqrt.default", replace(_ELEMENTWISE, powers={"self": -0.5}))
register_rule("reciprocal.default", replace(_ELEMENTWISE, powers={"self": -1.0}))
register_rule("neg.default", replace(_ELEMENTWISE, powers={"self": 1.0}))
register_rule("pow.Tensor_Scalar", replace(_ELEMENTWISE, powers={"self": "exponent"}))
register_rule(
    "relu.default gelu.default silu.default hardtanh.default hardswish.default sigmoid.default",
    replace(_ELEMENTWISE, in_place=True),
)
register_rule(
    "hardsigmoid.default relu6.default selu.default mish.default leaky_relu.default elu.default celu.default "
    "softplus.default log_sigmoid.default threshold.default masked_fill.Scalar masked_fill.Tensor "
    "where.self where.ScalarOther where.ScalarSelf where.Scalar square.default nan_to_num.default rsub.Scalar rsub.Tensor "
    "hardshrink.default softshrink.default __and__.Tensor __or__.Tensor __xor__.Tensor __and__.Scalar __or__.Scalar "
    "div.Tensor_mode div.Scalar_mode floor_divide.default min.other max.other clip.default clamp.Tensor isfinite.default "
    "isnan.default isinf.default logical_not.default lerp.Scalar lerp.Tensor addcmul.default addcdiv.default",
    _ELEMENTWISE,
)
register_rule(
    "zeros_like.default ones_like.default full_like.default empty_like.default rand_like.default randn_like.default "
    "bernoulli.p",
    Rule(pointwise, kind="elementwise"),
)
register_rule(
    "to.dtype", replace(_ELEMENTWISE, carries=True, view=True, powers={"self": 1.0})
)  # it may cut off decimals
register_rule("_to_copy.default type_as.default", replace(_ELEMENTWISE, view=True, powers={"self": 1.0}))
register_rule("clone.default alias.default detach.default", replace(_SAME, carries=True))
register_rule("contiguous.default", replace(_SAME, carries=True, view=True, idle=True))
register_rule("lift_fresh_copy.default fxprune::mark.default", _SAME)
register_rule("fxprune::function.default", _ELEMENTWISE)
register_rule("expand_as.default", replace(_SAME, conducts=False))
for _name, _owners, _module in (
    ("dropout", (nn.Dropout,), nn.Dropout),
    ("feature_dropout", (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), FeatureDropout),
    ("alpha_dropout", (nn.AlphaDropout,), nn.AlphaDropout),
    ("feature_alpha_dropout", (nn.FeatureAlphaDropout,), nn.FeatureAlphaDropout),
):
    _noise = Noise(_owners, "train", ("p",), _module)
    register_rule(f"{_name}.default", replace(_SAME, view=True, idle=True, module=_noise))
register_rule(
    "rrelu.default", replace(_ELEMENTWISE, module=Noise((nn.RReLU,), "training", ("lower", "upper"), nn.RReLU, "self"))
)
register_rule(
    "prelu.default",
    Rule(_prelu, constant=elementwise, module=Layer((nn.PReLU,), _of_prelu, {"weight": "weight"}, ("self",))),
)
register_rule("_prelu_kernel.default", Rule(_prelu, constant=elementwise))
register_rule("native_dropout.default", Rule(twice(pointwise)))
register_rule("outer.default ger.default", Rule(_outer))
register_rule("glu.default", Rule(_glu))

"""Activations and all other elementwise work: broadcast, and unite axis by axis."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import fx

from fxprune.algebra import axes as ax
from fxprune.algebra.axes import Axes
from fxprune.ops.registry import register, register_pointwise
from fxprune.ops.tracer import Tracer


def tensors(t: Tracer, a: SimpleNamespace) -> list[fx.Node]:
    """Returns the tensor operands, those in lists included."""
    found: list[fx.Node] = []
    for value in vars(a).values():
        items: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
        found += [item for item in items if t.is_tensor(item)]
    return found


def pointwise(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[b, c, h, w], y[c, 1, 1].  After: the two c are the same channels; the result is [b, c, h, w]."""
    operands = [t.axes(operand, node) for operand in tensors(t, a)]
    rank = max(map(len, operands), default=0)
    aligned = [((),) * (rank - len(axes)) + axes for axes in operands]
    return tuple(ax.broadcast(t.channels, column, t.where(node)) for column in zip(*aligned, strict=True))


def _prelu(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    x, w = t.axes(a.self, node), t.axes(a.weight, node)
    if len(x) < 2 or not w or t.shape(a.weight)[0] == 1:
        return x
    return (x[0], t.relate(node, x[1], w[0]), *x[2:])


def _outer(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[m], y[n].  After: [m, n]."""
    return (*t.axes(a.self, node), *t.axes(a.vec2, node))


def _native_dropout(t: Tracer, node: fx.Node, a: SimpleNamespace) -> list[Axes]:
    """The values and the mask: both have the channels of the input."""
    axes = pointwise(t, node, a)
    return [axes, axes]


def _glu(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[b, 2c].  After: the halves are the same channels; the result is [b, c]."""
    x = list(t.axes(a.self, node))
    dim = a.dim % len(x)
    half = t.shape(a.self)[dim] // 2
    first, second = (ax.take(t.channels, x[dim], start, start + half, 1, t.where(node)) for start in (0, half))
    x[dim] = t.relate(node, first, second)
    return tuple(x)


register_pointwise(pointwise)
register(
    ["to.dtype", "clone.default", "contiguous.default", "alias.default", "detach.default"], pointwise, carries=True
)
register(
    [
        "dropout.default", "fxprune::mark.default",
        "zeros_like.default", "ones_like.default", "full_like.default", "empty_like.default", "rand_like.default",
        "randn_like.default", "type_as.default", "_to_copy.default",
        "lift_fresh_copy.default", "feature_dropout.default", "alpha_dropout.default",
        "hardsigmoid.default", "hardswish.default", "hardtanh.default", "relu6.default", "selu.default",
        "silu.default", "gelu.default", "mish.default", "leaky_relu.default", "elu.default", "celu.default",
        "softplus.default", "log_sigmoid.default", "softsign.default", "rrelu.default", "threshold.default",
        "masked_fill.Scalar", "masked_fill.Tensor", "where.self", "where.ScalarOther", "where.ScalarSelf",
        "where.Scalar", "expand_as.default", "square.default", "nan_to_num.default", "rsub.Scalar", "rsub.Tensor",
        "hardshrink.default", "softshrink.default", "__and__.Tensor", "__or__.Tensor", "__xor__.Tensor",
        "__and__.Scalar", "__or__.Scalar", "div.Tensor_mode", "div.Scalar_mode", "floor_divide.default",
        "min.other", "max.other", "clip.default", "clamp.Tensor", "isfinite.default",
        "isnan.default", "isinf.default", "logical_not.default", "bernoulli.p", "lerp.Scalar", "lerp.Tensor",
        "addcmul.default", "addcdiv.default",
    ],
    pointwise,
)  # fmt: skip
register(["prelu.default", "_prelu_kernel.default"], _prelu)
register(["native_dropout.default"], _native_dropout)
register(["outer.default", "ger.default"], _outer)
register(["glu.default"], _glu)

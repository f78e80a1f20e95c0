"""Convolutions: 1d to 3d, grouped, depthwise, transposed."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from torch import fx, nn

from fxprune.algebra.axes import Axes, Axis, fixed
from fxprune.ops.constants import Constants
from fxprune.ops.modules import Layer, Site, affine
from fxprune.ops.registry import register_rule
from fxprune.ops.rule import Rule
from fxprune.ops.slicer import Edit, Slicer
from fxprune.ops.tracer import Tracer


def _spatial(t: Tracer, node: fx.Node, a: SimpleNamespace) -> tuple[Axes, Axes, int]:
    """Returns the axes of input and weight and the input's channel dimension, with space and kernel fixed."""
    x, w = t.axes(a.input, node), t.axes(a.weight, node)
    channel = len(x) - len(w) + 1
    for axis in x[channel + 1 :]:
        t.freeze(node, axis, "the spatial axis")
    for axis in w[2:]:
        t.freeze(node, axis, "the kernel")
    return x, w, channel


def _count(t: Tracer, groups: int | fx.Node) -> int:
    """Returns a number of groups; one known only at run time, such as the batch of a dynamic convolution, as a prime."""
    count: int = t.captured.info[groups] if isinstance(groups, fx.Node) else groups
    return count


def _finish(t: Tracer, node: fx.Node, a: SimpleNamespace, x: Axes, channel: int, out: Axis) -> Axes:
    if a.bias is not None:
        out = t.relate(node, out, t.axes(a.bias, node)[0])
    return (*x[:channel], out, *(fixed(size) for size in t.shape(node)[channel + 1 :]))


def _conv(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[b, i], w[o, i / g].  After: i is (g x i / g), o is (g x o / g), one g for both."""
    x, w, channel = _spatial(t, node, a)
    size = t.shape(a.weight)
    if a.groups == 1:
        t.relate(node, x[channel], w[1])
        out = w[0]
    else:
        groups = _count(t, a.groups)
        x_group, x_inner = t.reshape(node, [x[channel]], [groups, size[1]])
        w_group, w_inner = t.reshape(node, [w[0]], [groups, size[0] // groups])
        t.relate(node, x_inner, w[1])
        group = t.relate(node, x_group, w_group)
        if groups != a.groups:
            t.freeze(node, group, "a number of groups known only at run time")
        out = (*group, *w_inner)
        t.note(node, groups=group)
    axes = _finish(t, node, a, x, channel, out)
    macs = math.prod(t.example(node)) * math.prod(size[1:])
    if isinstance(a.groups, fx.Node):  # the input's channels are as many as samples: the kernels have the axis alone
        t.contract(node, a.weight, 1, w[1], (axes[channel], w[1]), macs)
    else:
        t.contract(node, a.input, channel, x[channel], (axes[channel], w[1]), macs, a.weight)
    return axes


def _conv_transpose(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes | None:
    """Before: x[b, i], w[i, o / g].  After: i is (g x i / g) in both, the result's o is (g x o / g)."""
    if isinstance(a.groups, fx.Node):  # as many groups as samples: all that it touches stays
        return None
    x, w, channel = _spatial(t, node, a)
    size = t.shape(a.weight)
    if a.groups == 1:
        t.relate(node, x[channel], w[0])
        out = w[1]
    else:
        per_group = [a.groups, size[0] // a.groups]
        x_group, x_inner = t.reshape(node, [x[channel]], per_group)
        w_group, w_inner = t.reshape(node, [w[0]], per_group)
        t.relate(node, x_inner, w_inner)
        group = t.relate(node, x_group, w_group)
        out = (*group, *w[1])
        t.note(node, groups=group)
    axes = _finish(t, node, a, x, channel, out)
    macs = math.prod(t.example(a.input)) * math.prod(size[1:])
    t.contract(node, a.input, channel, x[channel], (w[0], w[1]), macs, a.weight, 0)
    return axes


def _slice_groups(s: Slicer, node: fx.Node, a: SimpleNamespace) -> Edit:
    fixed_count = a.groups == 1 or isinstance(a.groups, fx.Node)
    return Edit({} if fixed_count else {"groups": s.count(s.noted(node, "groups"))})


def _channel(c: Constants, node: fx.Node, a: SimpleNamespace) -> int:
    return c.rank(node) - c.rank(a.weight) + 1


def _empty(c: Constants, node: fx.Node, a: SimpleNamespace) -> tuple[int, fx.Node | None]:
    return _channel(c, node, a), a.bias


def _of_constant(c: Constants, node: fx.Node, a: SimpleNamespace) -> int | None:
    """A pointwise convolution: it reads channels and makes channels."""
    dim = c.only(node, a.input)
    flat = all(size == 1 for size in (c.shape(a.weight) or ())[2:]) and not any(a.padding)
    return dim if dim == _channel(c, node, a) and flat and a.groups == 1 else None


def _module(cls: type[nn.Module], spatial: int, transposed: bool = False) -> Layer:
    def build(site: Site) -> nn.Module:
        weight, groups = site.tensors["weight"], site.values["groups"]
        first, second = weight.shape[0], weight.shape[1] * groups
        padding = site.values["padding"]
        options: dict[str, Any] = {"output_padding": site.sizes("output_padding", spatial)} if transposed else {}
        return cls(
            in_channels=first if transposed else second,
            out_channels=second if transposed else first,
            kernel_size=tuple(weight.shape[2:]),
            stride=site.sizes("stride", spatial),
            padding=padding if isinstance(padding, str) else site.sizes("padding", spatial),
            dilation=site.sizes("dilation", spatial),
            groups=groups,
            bias="bias" in site.tensors,
            device="meta",
            **options,
        )

    return Layer((cls,), build, affine(), agree=("stride", "padding", "dilation", "output_padding"))


for _n, _cls in ((1, nn.Conv1d), (2, nn.Conv2d), (3, nn.Conv3d)):
    _rule = Rule(_conv, slice=_slice_groups, literals=("groups",), kind="conv", empty=_empty, module=_module(_cls, _n))
    register_rule(f"conv{_n}d.default", replace(_rule, constant=_of_constant))
    register_rule(f"conv{_n}d.padding", _rule)
for _n, _transposed in ((1, nn.ConvTranspose1d), (2, nn.ConvTranspose2d), (3, nn.ConvTranspose3d)):
    register_rule(
        f"conv_transpose{_n}d.{'input' if _n > 1 else 'default'}",
        Rule(
            _conv_transpose,
            slice=_slice_groups,
            literals=("groups",),
            kind="conv_transpose",
            empty=_empty,
            module=_module(_transposed, _n, transposed=True),
        ),
    )

"""Convolutions: 1d to 3d, grouped, depthwise, transposed, deformable."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

from torch import fx, nn

from fxprune.algebra.axes import Axes, Axis, fixed, joined
from fxprune.ops.constants import Constants
from fxprune.ops.modules import Layer, Site, affine
from fxprune.ops.registry import register_rule
from fxprune.ops.rule import Rule
from fxprune.ops.slicer import noted_sizes
from fxprune.ops.tracer import Tracer


def _conv(t: Tracer, node: fx.Node, a: SimpleNamespace, transposed: bool = False) -> Axes | None:
    """Before: x[b, i], w[o, i / g] or transposed w[i, o / g].  After: i (g x i / g), o (g x o / g), one g for both."""
    if transposed and isinstance(a.groups, fx.Node):  # as many groups as samples: all that it touches stays
        return None
    w, size = t.axes(a.weight, node), t.shape(a.weight)
    # a number known only at run time, such as the batch of a dynamic convolution, is a prime
    groups: int = t.captured.info[a.groups] if isinstance(a.groups, fx.Node) else a.groups
    channel = len(t.shape(a.input)) - len(w) + 1
    given = t.axes(a.input, node)
    x = t.fix(node, given, range(channel + 1, len(given)), "the spatial axis")
    t.freeze(node, joined(w[2:]), "the kernel")
    per_group = size[0] // groups
    x_group, x_inner = _grouped(t, node, x[channel], groups, per_group if transposed else size[1])
    w_group, w_inner = _grouped(t, node, w[0], groups, per_group)
    reads, makes = (w_inner, w[1]) if transposed else (w[1], w_inner)
    t.relate(node, x_inner, reads)
    group = t.relate(node, x_group, w_group)
    if groups != a.groups:
        t.freeze(node, group, "a number of groups known only at run time")
    t.note(node, groups=group)
    out = (*group, *makes)
    if a.bias is not None:
        out = t.relate(node, out, t.axes(a.bias, node)[0])
    macs = math.prod(t.example(a.input if transposed else node)) * math.prod(size[1:])
    loops = (w[0] if transposed else out, w[1])
    if groups != a.groups:  # the input's channels are as many as samples: the kernels have the axis alone
        t.contract(node, (a.weight, 1), w[1], loops, macs)
    else:
        t.contract(node, (a.input, channel), x[channel], loops, macs, a.weight, 0 if transposed else 1)
    return (*x[:channel], out, *x[channel + 1 :])


def _grouped(t: Tracer, node: fx.Node, axis: Axis, groups: int, size: int) -> Axes:
    return ((), axis) if groups == 1 else t.reshape(node, [axis], [groups, size])


def _deformed(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[b, i, h, w], w[o, i / g], a shift of each tap for each of d parts of i.  After: d stays, within them i goes."""
    x, w, size = list(t.axes(a.input, node)), t.axes(a.weight, node), t.shape(a.weight)
    t.freeze(node, joined((*x[2:], *w[2:])), "the spatial axis")
    for shifts in (a.offset, a.mask) if a.use_mask else (a.offset,):
        batch, *rest = t.axes(shifts, node)
        x[0] = t.relate(node, x[0], batch)
        t.freeze(node, joined(rest), "what moves the taps")
    if a.offset_groups > 1:
        x[1] = joined(t.reshape(node, [x[1]], [a.offset_groups, t.shape(a.input)[1] // a.offset_groups]))
        t.freeze(node, x[1][:1], "the parts that are moved together")
    x_group, inner = _grouped(t, node, x[1], a.groups, size[1])
    w_group, makes = _grouped(t, node, w[0], a.groups, size[0] // a.groups)
    t.relate(node, inner, w[1])
    group = t.relate(node, x_group, w_group)
    t.note(node, groups=group)
    out = t.relate(node, (*group, *makes), t.axes(a.bias, node)[0])
    t.contract(node, (a.input, 1), x[1], (out, w[1]), math.prod(t.example(node)) * math.prod(size[1:]), a.weight, 1)
    return (x[0], out, *map(fixed, t.shape(node)[2:]))


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


for _n, _plain, _transposed in (
    (1, nn.Conv1d, nn.ConvTranspose1d),
    (2, nn.Conv2d, nn.ConvTranspose2d),
    (3, nn.Conv3d, nn.ConvTranspose3d),
):
    _rule = Rule(_conv, slice=noted_sizes, literals=("groups",), kind="conv", empty=_empty, module=_module(_plain, _n))
    register_rule(f"conv{_n}d.default", replace(_rule, constant=_of_constant))
    register_rule(f"conv{_n}d.padding", _rule)
    _couple, _layer = partial(_conv, transposed=True), _module(_transposed, _n, transposed=True)
    _rule = replace(_rule, couple=_couple, kind="conv_transpose", module=_layer)
    register_rule(f"conv_transpose{_n}d.{'input' if _n > 1 else 'default'}", _rule)
register_rule("torchvision::deform_conv2d.default", Rule(_deformed, slice=noted_sizes, literals=("groups",)))

"""Batch, instance, layer, RMS and group norm: the channel axis with its parameters, statistics over what stays."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fxprune.algebra.axes import Axes, Axis, is_labelled
from fxprune.ops.constants import Constants
from fxprune.ops.modules import Layer, Site, affine
from fxprune.ops.registry import register_rule
from fxprune.ops.rule import Rule
from fxprune.ops.slicer import Edit, Slicer
from fxprune.ops.tracer import Tracer
from fxprune.ops.twin import Twin


def _channel_norm(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[b, c, ...], weight[c], running_mean[c].  After: one c."""
    x = t.axes(a.input, node)
    channel = x[1]
    for operand in (a.weight, a.bias, a.running_mean, a.running_var):
        if operand is not None:
            channel = t.relate(node, channel, t.axes(operand, node)[0])
    if getattr(a, "training", False) or getattr(a, "use_input_stats", False):
        start = 2 if hasattr(a, "use_input_stats") else 0
        if any(is_labelled(axis) for axis in (*x[start:1], *x[2:])):
            t.statistic(node)
    return (x[0], channel, *x[2:])


def _twin_channel_norm(t: Twin, node: fx.Node, a: SimpleNamespace) -> Tensor:
    """Normalises over what stays of the axes that the statistics run over."""
    axes = t.axes(a.input, node)
    x = t.value(a.input)
    over = [
        (dim, axis) for dim, axis in enumerate(axes) if dim >= 2 or (dim == 0 and not hasattr(a, "use_input_stats"))
    ]
    arguments = {name: t.value(value) for name, value in vars(a).items()} | {"input": t.gather(x, over)}
    return t.scatter(t.run(node, **arguments), over, [x.shape[dim] for dim, _ in over])


def _layer_norm(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[b, n, c], weight[c].  After: one c, and a statistic over it."""
    x = list(t.axes(a.input, node))
    first = len(x) - len(a.normalized_shape)
    for operand in (a.weight, getattr(a, "bias", None)):
        if operand is not None:
            for offset, axis in enumerate(t.axes(operand, node)):
                x[first + offset] = t.relate(node, x[first + offset], axis)
    if any(is_labelled(axis) for axis in x[first:]):
        t.statistic(node)
    return tuple(x)


def _slice_layer_norm(s: Slicer, node: fx.Node, a: SimpleNamespace) -> Edit:
    axes = s.axes(node)[len(s.axes(node)) - len(a.normalized_shape) :]
    return Edit({"normalized_shape": [s.count(axis) for axis in axes]})


def _twin_layer_norm(t: Twin, node: fx.Node, a: SimpleNamespace) -> Tensor:
    x = t.value(a.input)
    first = x.dim() - len(a.normalized_shape)
    axes = t.axes(a.input, node)[first:]
    over = [(first + i, axis) for i, axis in enumerate(axes)]
    own = list(enumerate(axes))
    arguments = {name: t.value(value) for name, value in vars(a).items()}
    for name in ("weight", "bias"):
        if arguments.get(name) is not None:
            arguments[name] = t.gather(arguments[name], own)
    arguments |= {"input": t.gather(x, over), "normalized_shape": [t.count(axis) for axis in axes]}
    return t.scatter(t.run(node, **arguments), over, [x.shape[dim] for dim, _ in over])


def _group_norm(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[b, c].  After: c is (groups x per group); groups go whole, or the same position in each."""
    x = t.axes(a.input, node)
    channel: Axis = x[1]
    for operand in (a.weight, a.bias):
        if operand is not None:
            channel = t.relate(node, channel, t.axes(operand, node)[0])
    group, inner = t.reshape(node, [channel], [a.num_groups, t.shape(a.input)[1] // a.num_groups])
    t.note(node, groups=group)
    if any(is_labelled(axis) for axis in (inner, *x[2:])):
        t.statistic(node)
    return (x[0], (*group, *inner), *x[2:])


def _slice_group_norm(s: Slicer, node: fx.Node, a: SimpleNamespace) -> Edit:
    return Edit({"num_groups": s.count(s.noted(node, "groups"))})


def _twin_group_norm(t: Twin, node: fx.Node, a: SimpleNamespace) -> Tensor:
    x = t.value(a.input)
    axes = t.axes(a.input, node)
    over = [(dim, axis) for dim, axis in enumerate(axes) if dim >= 1]
    arguments: dict[str, Any] = {name: t.value(value) for name, value in vars(a).items()}
    for name in ("weight", "bias"):
        if arguments[name] is not None:
            arguments[name] = t.gather(arguments[name], [(0, axes[1])])
    arguments |= {"input": t.gather(x, over), "num_groups": t.count(t.noted(node, "groups"))}
    return t.scatter(t.run(node, **arguments), over, [x.shape[dim] for dim, _ in over])


def _weight_norm(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: v[o, i], g[o, 1].  After: [o, i], scaled by a norm over what stays of i."""
    v, g = t.axes(a.v, node), t.axes(a.g, node)
    axes = tuple(t.relate(node, x, y) if y else x for x, y in zip(v, g, strict=True))
    if any(is_labelled(x) for x, y in zip(v, g, strict=True) if not y):
        t.statistic(node)
    return axes


def _twin_weight_norm(t: Twin, node: fx.Node, a: SimpleNamespace) -> Tensor:
    v = t.value(a.v)
    over = [(d, axis) for d, axis in enumerate(t.axes(a.v, node)) if not t.axes(a.g, node)[d]]
    arguments = {name: t.value(value) for name, value in vars(a).items()} | {"v": t.gather(v, over)}
    return t.scatter(t.run(node, **arguments), over, [v.shape[d] for d, _ in over])


def _batch_norm_of_constant(c: Constants, node: fx.Node, a: SimpleNamespace) -> int | None:
    return 1 if c.only(node, a.input) == 1 and not a.training else None


def _layer_norm_of_constant(c: Constants, node: fx.Node, a: SimpleNamespace) -> int | None:
    """Over the channels and nothing else."""
    dim = c.only(node, a.input)
    return dim if dim == c.rank(a.input) - 1 and len(a.normalized_shape) == 1 else None


def _group_norm_of_constant(c: Constants, node: fx.Node, a: SimpleNamespace) -> int | None:
    return 1 if c.only(node, a.input) == 1 else None


def _with_statistics(flag: str, base: type[nn.Module], *plain: type[nn.Module]) -> Layer:
    """Returns how batch or instance norms are built; ``plain`` are the classes for one, two and three dimensions."""
    by_rank = {2: plain[0], 3: plain[0], 4: plain[1], 5: plain[2]}

    def build(site: Site) -> nn.Module | None:
        tracked = "running_mean" in site.tensors
        own = next((cls for cls in plain if isinstance(site.owner, cls)), None)
        cls = own or (by_rank.get(site.rank) if site.rank is not None else None)
        if cls is None or site.values[flag] == tracked:
            return None
        return cls(
            num_features=next(iter(site.tensors.values())).shape[0],
            eps=site.values["eps"],
            momentum=site.owner.momentum,
            affine="weight" in site.tensors,
            track_running_stats=tracked,
            device="meta",
        )

    return Layer((base,), build, affine("running_mean", "running_var"), borrow=False)


def _of_layer_norm(site: Site) -> nn.Module | None:
    weight = site.tensors.get("weight")
    if weight is None:
        return None
    return nn.LayerNorm(tuple(weight.shape), site.values["eps"], bias="bias" in site.tensors, device="meta")


def _of_rms_norm(site: Site) -> nn.Module:
    return nn.RMSNorm(tuple(site.tensors["weight"].shape), site.values["eps"], device="meta")


def _of_group_norm(site: Site) -> nn.Module | None:
    weight = site.tensors.get("weight")
    if weight is None:
        return None
    return nn.GroupNorm(site.values["num_groups"], weight.shape[0], site.values["eps"], device="meta")


_CHANNELS = Rule(_channel_norm, twin=_twin_channel_norm, statistic=True)
_LAYER = Rule(
    _layer_norm,
    slice=_slice_layer_norm,
    literals=("normalized_shape",),
    twin=_twin_layer_norm,
    statistic=True,
    constant=_layer_norm_of_constant,
)

register_rule("_weight_norm.default", Rule(_weight_norm, twin=_twin_weight_norm, statistic=True))
register_rule(
    "batch_norm.default",
    replace(
        _CHANNELS,
        kind="batch_norm",
        constant=_batch_norm_of_constant,
        module=_with_statistics("training", _BatchNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    ),
)
register_rule(
    "instance_norm.default",
    replace(
        _CHANNELS,
        module=_with_statistics(
            "use_input_stats", _InstanceNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d
        ),
    ),
)
register_rule(
    "layer_norm.default", replace(_LAYER, module=Layer((nn.LayerNorm,), _of_layer_norm, affine(), agree=("eps",)))
)
register_rule(
    "rms_norm.default", replace(_LAYER, module=Layer((nn.RMSNorm,), _of_rms_norm, {"weight": "weight"}, agree=("eps",)))
)
register_rule(
    "group_norm.default",
    Rule(
        _group_norm,
        slice=_slice_group_norm,
        literals=("num_groups",),
        twin=_twin_group_norm,
        statistic=True,
        constant=_group_norm_of_constant,
        module=Layer((nn.GroupNorm,), _of_group_norm, affine(), agree=("eps",)),
    ),
)

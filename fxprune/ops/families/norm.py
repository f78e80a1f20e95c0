"""Batch, instance, layer, RMS and group norm: the channel axis with its parameters, statistics over what stays."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fxprune.algebra.axes import Axes, Axis, is_labelled, size_of
from fxprune.ops.constants import Constants
from fxprune.ops.modules import Layer, Site, affine
from fxprune.ops.registry import register_rule
from fxprune.ops.rule import Rule
from fxprune.ops.slicer import Edit, Slicer, noted_sizes
from fxprune.ops.tracer import Tracer
from fxprune.ops.twin import Twin


def _channels(t: Tracer, node: fx.Node, axis: Axis, *operands: fx.Node | None) -> Axis:
    """Relates an axis with that of each vector of parameters or statistics; returns it."""
    for operand in operands:
        if operand is not None:
            axis = t.relate(node, axis, t.axes(operand, node)[0])
    return axis


def _channel_norm(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[b, c, ...], weight[c], running_mean[c].  After: one c."""
    x = t.axes(a.input, node)
    channel = _channels(t, node, x[1], a.weight, a.bias, a.running_mean, a.running_var)
    measures = getattr(a, "training", False) or getattr(a, "use_input_stats", False)
    if measures and any(is_labelled(axis) for _, axis in _measured(x, a)):
        t.statistic(node)
    return (x[0], channel, *x[2:])


def _measured(x: Axes, a: SimpleNamespace) -> list[tuple[int, Axis]]:
    """Returns the (dim, axis) pairs that a batch or an instance norm takes its statistics over."""
    return [(d, axis) for d, axis in enumerate(x) if d >= 2 or (d == 0 and not hasattr(a, "use_input_stats"))]


def _twin_channel_norm(t: Twin, node: fx.Node, a: SimpleNamespace) -> Tensor:
    """Normalises over what stays of the axes that the statistics run over."""
    over = _measured(t.axes(a.input, node), a)
    return t.scatter(t.run(node, **t.given(a, input=over)), over)


def _layer_norm(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[b, n, c], weight[c].  After: one c, and a statistic over it."""
    x = list(t.axes(a.input, node))
    first = len(x) - len(a.normalized_shape)
    for operand in (a.weight, getattr(a, "bias", None)):
        if operand is not None:
            x[first:] = [t.relate(node, *pair) for pair in zip(x[first:], t.axes(operand, node), strict=True)]
    if any(is_labelled(axis) for axis in x[first:]):
        t.statistic(node)
    return tuple(x)


def _slice_layer_norm(s: Slicer, node: fx.Node, a: SimpleNamespace) -> Edit:
    axes = s.axes(node)[len(s.axes(node)) - len(a.normalized_shape) :]
    sizes = zip(a.normalized_shape, axes, strict=True)
    return Edit({"normalized_shape": [s.resize(size, axis) for size, axis in sizes]})


def _twin_layer_norm(t: Twin, node: fx.Node, a: SimpleNamespace) -> Tensor:
    axes = t.axes(a.input, node)
    over = list(enumerate(axes))[len(axes) - len(a.normalized_shape) :]
    own = list(enumerate(axis for _, axis in over))
    given = t.given(a, input=over, weight=own, bias=own)
    sizes = given["input"].shape[len(axes) - len(over) :]
    return t.scatter(t.run(node, **given | {"normalized_shape": sizes}), over)


def _share(s: Slicer, node: fx.Node, a: SimpleNamespace) -> float:
    """Returns the share of the normalised channels that stays; 1 where none does, and there is nothing to scale."""
    axes = s.axes(a.input, node)[-len(a.normalized_shape) :]
    return math.prod(s.count(axis) / size_of(axis) for axis in axes if s.changed(axis)) or 1.0


def _has_own_gain(a: SimpleNamespace) -> bool:
    return isinstance(a.weight, fx.Node) and a.weight.op == "get_attr" and len(a.weight.users) == 1


def _rms_factor(s: Slicer, node: fx.Node, a: SimpleNamespace) -> float:
    """Of a norm whose weight cannot take it: ``1 / sqrt(share)``, since the mean square of all is ``share`` times that of what stays."""
    return 1.0 if _has_own_gain(a) else _share(s, node, a) ** -0.5


def _rms_gains(s: Slicer, node: fx.Node, a: SimpleNamespace) -> dict[fx.Node, float]:
    return {a.weight: _share(s, node, a) ** -0.5} if _has_own_gain(a) else {}


def _rms_eps(s: Slicer, node: fx.Node, a: SimpleNamespace) -> float | None:
    """Returns eps as a share of what stays; None, which torch takes as that of the dtype it computes in, is a number then."""
    share = _share(s, node, a)
    if a.eps is None and share == 1.0:
        return None
    computed = torch.promote_types(s.info[node].dtype, torch.float32)
    return (torch.finfo(computed).eps if a.eps is None else a.eps) / share


def _slice_rms_norm(s: Slicer, node: fx.Node, a: SimpleNamespace) -> Edit:
    return Edit({**_slice_layer_norm(s, node, a).arguments, "eps": _rms_eps(s, node, a)})


def _twin_rms_norm(t: Twin, node: fx.Node, a: SimpleNamespace) -> Tensor:
    """Over what stays; what takes the mean square of all is eps, and the weight or a factor."""
    a = SimpleNamespace(**{**vars(a), "eps": _rms_eps(t, node, a)})
    return _twin_layer_norm(t, node, a) * _rms_factor(t, node, a)


def _group_norm(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[b, c].  After: c is (groups x per group); groups go whole, or the same position in each."""
    x = t.axes(a.input, node)
    channel = _channels(t, node, x[1], a.weight, a.bias)
    group, inner = t.reshape(node, [channel], [a.num_groups, t.shape(a.input)[1] // a.num_groups])
    t.note(node, num_groups=group)
    if any(is_labelled(axis) for axis in (inner, *x[2:])):
        t.statistic(node)
    return (x[0], (*group, *inner), *x[2:])


def _twin_group_norm(t: Twin, node: fx.Node, a: SimpleNamespace) -> Tensor:
    over = list(enumerate(t.axes(a.input, node)))[1:]
    own = [(0, over[0][1])]
    arguments = t.given(a, input=over, weight=own, bias=own) | {"num_groups": t.count(t.noted(node, "num_groups"))}
    return t.scatter(t.run(node, **arguments), over)


def _weight_norm(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: v[o, i], g[o, 1].  After: [o, i], scaled by a norm over what stays of i."""
    v, g = t.axes(a.v, node), t.axes(a.g, node)
    axes = tuple(t.relate(node, x, y) if y else x for x, y in zip(v, g, strict=True))
    if any(is_labelled(x) for x, y in zip(v, g, strict=True) if not y):
        t.statistic(node)
    return axes


def _twin_weight_norm(t: Twin, node: fx.Node, a: SimpleNamespace) -> Tensor:
    over = [(d, axis) for d, axis in enumerate(t.axes(a.v, node)) if not t.axes(a.g, node)[d]]
    return t.scatter(t.run(node, **t.given(a, v=over)), over)


def _layer_norm_of_constant(c: Constants, node: fx.Node, a: SimpleNamespace) -> int | None:
    """Over the channels and nothing else."""
    dim = c.only(node, a.input)
    return dim if dim == c.rank(a.input) - 1 and len(a.normalized_shape) == 1 else None


def _channels_of_constant(c: Constants, node: fx.Node, a: SimpleNamespace) -> int | None:
    return 1 if c.only(node, a.input) == 1 and not getattr(a, "training", False) else None


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
            momentum=None if site.owner.momentum is None else site.values["momentum"],
            affine="weight" in site.tensors,
            track_running_stats=tracked,
            device="meta",
        )

    return Layer((base,), build, affine("running_mean", "running_var"), borrow=False)


def _shape(site: Site) -> list[int]:
    """Returns the shape of a norm's weight; nothing where it has none."""
    return list(site.tensors["weight"].shape) if "weight" in site.tensors else []


def _of_layer_norm(site: Site) -> nn.Module | None:
    shape, eps = _shape(site), site.values["eps"]
    return nn.LayerNorm(shape, eps, bias="bias" in site.tensors, device="meta") if shape else None


def _of_rms_norm(site: Site) -> nn.Module:
    return nn.RMSNorm(_shape(site), site.values["eps"], device="meta")


def _of_group_norm(site: Site) -> nn.Module | None:
    shape, eps = _shape(site), site.values["eps"]
    return nn.GroupNorm(site.values["num_groups"], shape[0], eps, device="meta") if shape else None


_STATISTIC = Rule(_channel_norm, twin=_twin_channel_norm, statistic=True)
_BATCH = _with_statistics("training", _BatchNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_INSTANCE = _with_statistics("use_input_stats", _InstanceNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_LAYER = Rule(
    _layer_norm,
    slice=_slice_layer_norm,
    literals=("normalized_shape",),
    twin=_twin_layer_norm,
    statistic=True,
    kind="norm",
    constant=_layer_norm_of_constant,
    module=Layer((nn.LayerNorm,), _of_layer_norm, affine(), agree=("eps",)),
)
_GROUP = Rule(
    _group_norm,
    slice=noted_sizes,
    literals=("num_groups",),
    twin=_twin_group_norm,
    statistic=True,
    kind="norm",
    constant=_channels_of_constant,
    module=Layer((nn.GroupNorm,), _of_group_norm, affine(), agree=("eps",)),
)

register_rule("_weight_norm.default", Rule(_weight_norm, twin=_twin_weight_norm, statistic=True))
register_rule(
    "batch_norm.default", replace(_STATISTIC, kind="batch_norm", constant=_channels_of_constant, module=_BATCH)
)
register_rule("instance_norm.default", replace(_STATISTIC, module=_INSTANCE))
register_rule("layer_norm.default", _LAYER)
register_rule(
    "rms_norm.default",
    replace(
        _LAYER,
        slice=_slice_rms_norm,
        literals=("normalized_shape", "eps"),
        twin=_twin_rms_norm,
        factor=_rms_factor,
        gains=_rms_gains,
        module=Layer((nn.RMSNorm,), _of_rms_norm, {"weight": "weight"}, agree=("eps",)),
    ),
)
register_rule("group_norm.default", _GROUP)

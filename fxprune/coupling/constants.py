"""Constants: what a layer without inputs leaves, one value for each channel, followed through what only moves it about."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx

from fxprune._base.names import fetch
from fxprune.capturing.captured import TensorInfo
from fxprune.coupling.coupling import Coupling
from fxprune.ops.registry import bind, rule_of
from fxprune.ops.slicer import Slicer
from fxprune.ops.tracer import Contraction
from fxprune.ops.twin import Twin

_aten = torch.ops.aten
_Shape = tuple[int, ...]


def channel_dims(coupling: Coupling, starts: Mapping[fx.Node, Contraction]) -> dict[fx.Node, int]:
    """Returns the nodes whose value is one constant for each channel, with the dimension of the channels.

    Args:
        coupling: of the captured graph.
        starts: contractions that have nothing left to sum; what they add is the constant.
    """
    found: dict[fx.Node, int] = {}
    weights: set[fx.Node] = set()  # and what is computed from them alone
    for node in coupling.captured.module.graph.nodes if starts else ():
        if node.op == "get_attr" or (node.all_input_nodes and weights.issuperset(node.all_input_nodes)):
            weights.add(node)
        elif node in starts:
            found[node] = _of_start(coupling, starts[node])
        elif (dim := _of_others(coupling, node, found, weights)) is not None:
            found[node] = dim
    return found


def _shape(coupling: Coupling, node: Any) -> _Shape | None:
    info = coupling.captured.info.get(node)
    return info.shape if isinstance(info, TensorInfo) else None


def _of_start(coupling: Coupling, start: Contraction) -> int:
    weight = _shape(coupling, start.weight)
    spatial = len(weight) - 2 if weight is not None else 0
    return len(coupling.captured.info[start.node].shape) - 1 - spatial


def _of_others(
    coupling: Coupling, node: fx.Node, found: Mapping[fx.Node, int], weights: Container[fx.Node]
) -> int | None:
    """Returns where the channels lie if a constant goes in, beside it nothing but weights, and nothing else comes out."""
    sources = [s for s in node.all_input_nodes if _shape(coupling, s) is not None]
    shape = _shape(coupling, node)
    if shape is None or not any(s in found for s in sources) or not isinstance(node.target, torch._ops.OpOverload):
        return None
    if not all(s in found or s in weights for s in sources):
        return None
    move = _MOVES.get(node.target)
    if move is not None:
        source = sources[0]
        before = _shape(coupling, source)
        assert before is not None
        return move(bind(node), found[source], before, shape) if source in found else None
    mixed = _MIXES.get(node.target)
    if mixed is not None:
        a = bind(node)
        x = a.input if hasattr(a, "input") else a.self
        return mixed(coupling, a, found[x]) if [s for s in sources if s in found] == [x] else None
    return _elementwise(coupling, sources, shape, found) if torch.Tag.pointwise in node.target.tags else None


def _elementwise(coupling: Coupling, sources: list[fx.Node], shape: _Shape, found: Mapping[fx.Node, int]) -> int | None:
    """The channels of all constants lie one above the other, and parameters vary along no other dimension."""
    from_end = {found[s] - len(coupling.captured.info[s].shape) for s in sources if s in found}
    if len(from_end) > 1:
        return None
    dim = len(shape) + from_end.pop()
    for source in sources:
        own = coupling.captured.info[source].shape
        offset = len(shape) - len(own)
        if source not in found and any(size != 1 and i + offset != dim for i, size in enumerate(own)):
            return None
    return dim


def _batch_norm(coupling: Coupling, a: SimpleNamespace, dim: int) -> int | None:
    return 1 if dim == 1 and not a.training else None


def _layer_norm(coupling: Coupling, a: SimpleNamespace, dim: int) -> int | None:
    """Over the channels and nothing else."""
    behind = coupling.captured.info[a.input].shape[dim:]
    return dim if len(behind) == len(a.normalized_shape) == 1 else None


def _group_norm(coupling: Coupling, a: SimpleNamespace, dim: int) -> int | None:
    return dim if dim == 1 else None


def _statistic(coupling: Coupling, a: SimpleNamespace, dim: int) -> int | None:
    """Over the channels, their dimension kept; or over nothing but others."""
    rank = len(coupling.captured.info[a.self].shape)
    over = {d % rank for d in a.dim} if a.dim else set(range(rank))
    if a.keepdim:
        return dim
    return None if dim in over else dim - sum(d < dim for d in over)


def _sum(coupling: Coupling, a: SimpleNamespace, dim: int) -> int | None:
    """Over the channels alone: along another dimension a sum counts the values."""
    rank = len(coupling.captured.info[a.self].shape)
    return dim if a.keepdim and a.dim and {d % rank for d in a.dim} == {dim} else None


def _pointwise_layer(coupling: Coupling, a: SimpleNamespace, dim: int) -> int | None:
    """A linear layer, or a convolution of kernel size 1, which reads channels and makes channels."""
    weight, x = _shape(coupling, a.weight), _shape(coupling, a.input)
    assert weight is not None and x is not None
    flat = all(size == 1 for size in weight[2:]) and not any(getattr(a, "padding", ()))
    return dim if dim == len(x) - len(weight) + 1 and flat and getattr(a, "groups", 1) == 1 else None


def _permuted(a: SimpleNamespace, dim: int, before: _Shape, after: _Shape) -> int | None:
    return [d % len(before) for d in a.dims].index(dim)


def _swapped(a: SimpleNamespace, dim: int, before: _Shape, after: _Shape) -> int | None:
    pair = [d % len(before) for d in ([v for k, v in vars(a).items() if k != "self"] or [0, 1])]
    return pair[1 - pair.index(dim)] if dim in pair else dim


def _reshaped(a: SimpleNamespace, dim: int, before: _Shape, after: _Shape) -> int | None:
    """The dimension of the same size with as many values behind it, if there is one."""
    behind, size = math.prod(before[dim + 1 :]), before[dim]
    places = [d for d, s in enumerate(after) if s == size and math.prod(after[d + 1 :]) == behind]
    return places[0] if len(places) == 1 and size > 1 else None


def _beside(a: SimpleNamespace, dim: int, before: _Shape, after: _Shape) -> int | None:
    """Other dimensions than the channels' are cut, rolled or flipped."""
    touched = [d % len(before) for d in (a.dims if hasattr(a, "dims") else [a.dim])]
    return dim if touched and dim not in touched else None  # rolled without dims it is rolled flat


def _kept(a: SimpleNamespace, dim: int, before: _Shape, after: _Shape) -> int | None:
    return dim + len(after) - len(before)


_MOVES: Mapping[Any, Callable[[SimpleNamespace, int, _Shape, _Shape], int | None]] = {
    _aten.permute.default: _permuted,
    **dict.fromkeys((_aten.transpose.int, _aten.t.default), _swapped),
    **dict.fromkeys(
        (_aten.view.default, _aten.reshape.default, _aten._unsafe_view.default, _aten.unsqueeze.default,
         _aten.squeeze.dim, _aten.squeeze.dims, _aten.squeeze.default), _reshaped,
    ),
    **dict.fromkeys((_aten.slice.Tensor, _aten.roll.default, _aten.flip.default, _aten.index_select.default), _beside),
    **dict.fromkeys(
        (_aten.adaptive_avg_pool1d.default, _aten.adaptive_avg_pool2d.default, _aten.upsample_nearest2d.vec,
         _aten.dropout.default, _aten.clone.default, _aten.contiguous.default, _aten.to.dtype, _aten.expand.default,
         _aten.expand_as.default, torch.ops.fxprune.mark.default), _kept,
    ),
}  # fmt: skip

#: ops that mix the channels of a constant, or ask what the other dimensions are; their masked twin gives the value
_MIXES: Mapping[Any, Callable[[Coupling, SimpleNamespace, int], int | None]] = {
    _aten.batch_norm.default: _batch_norm,
    _aten.group_norm.default: _group_norm,
    **dict.fromkeys((_aten.layer_norm.default, _aten.rms_norm.default), _layer_norm),
    **dict.fromkeys((_aten.mean.dim, _aten.amax.default), _statistic),
    **dict.fromkeys((_aten.sum.dim_IntList, _aten.var.correction, _aten.linalg_vector_norm.default), _sum),
    **dict.fromkeys((_aten.linear.default, _aten.conv1d.default, _aten.conv2d.default), _pointwise_layer),
}


def constant_value(
    coupling: Coupling, slicer: Slicer, constant: Mapping[fx.Node, int], node: fx.Node, tensors: Mapping[str, Tensor],
    memo: dict[fx.Node, Tensor],
) -> Tensor:  # fmt: skip
    """Returns a constant node's value in float64, every dimension of size one but the channels', zero where those are gone.

    Args:
        coupling: of the captured graph.
        slicer: what stays.
        constant: what `channel_dims` returned.
        node: one of those, or what is computed from parameters alone.
        tensors: replacements of parameters and buffers.
        memo: values that are known; grows.
    """

    def get(source: fx.Node) -> Tensor:
        return constant_value(coupling, slicer, constant, source, tensors, memo)

    if node not in memo:
        memo[node] = _value(coupling, Twin(slicer, get), constant, node, tensors, get)
    return memo[node]


def _value(
    coupling: Coupling, twin: Twin, constant: Mapping[fx.Node, int], node: fx.Node, tensors: Mapping[str, Tensor],
    get: Callable[[fx.Node], Tensor],
) -> Tensor:  # fmt: skip
    if node.op == "get_attr":
        found: Tensor = fetch(coupling.captured.module, str(node.target))
        found = _lifted(tensors.get(str(node.target), found).detach())
        axes = list(enumerate(coupling.values[node] or ()))
        return twin.scatter(twin.gather(found, axes), axes, found.shape)
    shape, dim = coupling.captured.info[node].shape, constant.get(node)
    place = [-1 if d == dim else 1 for d in range(len(shape))]
    a = SimpleNamespace(**{name: _lifted(value) for name, value in vars(bind(node)).items()})
    if dim is not None and any(c.node is node and not twin.count(c.axis) for c in coupling.contractions):
        added = getattr(a, "bias", None)
        return (get(a.weight).new_zeros(shape[dim]) if added is None else get(added)).reshape(place)
    # a conversion may cut off decimals
    if dim is not None and node.target in _MOVES and node.target is not _aten.to.dtype:
        return get(next(s for s in node.all_input_nodes if s in constant)).reshape(place)
    rule = rule_of(node.target)
    result: Tensor = rule.twin(twin, node, a) if rule and rule.twin else twin.run(node, **twin.value(vars(a)))
    return result


def _lifted(value: Any) -> Any:
    """Returns a floating tensor in float64, and float64 for a floating dtype; anything else as it is."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.double()
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value

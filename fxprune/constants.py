"""Constants: what a layer without inputs leaves, one value for each channel, followed through what only moves it about."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.capture import TensorInfo
from fxprune.coupling import Coupling
from fxprune.paths import fetch
from fxprune.rules.registry import bind
from fxprune.rules.tracing import Contraction

_aten = torch.ops.aten
_Shape = tuple[int, ...]


def channel_dims(coupling: Coupling, starts: Mapping[fx.Node, Contraction]) -> dict[fx.Node, int]:
    """Returns the nodes whose value is one constant for each channel, with the dimension of the channels.

    Args:
        coupling: of the captured graph.
        starts: contractions that have nothing left to sum; what they add is the constant.
    """
    found: dict[fx.Node, int] = {}
    for node in coupling.captured.module.graph.nodes if starts else ():
        dim = _of_start(coupling, starts[node]) if node in starts else _of_others(coupling, node, found)
        if dim is not None:
            found[node] = dim
    return found


def _shape(coupling: Coupling, node: Any) -> _Shape | None:
    info = coupling.captured.info.get(node)
    return info.shape if isinstance(info, TensorInfo) else None


def _of_start(coupling: Coupling, start: Contraction) -> int:
    weight = _shape(coupling, start.weight)
    spatial = len(weight) - 2 if weight is not None else 0
    return len(coupling.captured.info[start.node].shape) - 1 - spatial


def _of_others(coupling: Coupling, node: fx.Node, found: Mapping[fx.Node, int]) -> int | None:
    """Returns where the channels lie if a constant goes in, beside it nothing but parameters, and nothing else comes out."""
    sources = [s for s in node.all_input_nodes if _shape(coupling, s) is not None]
    shape = _shape(coupling, node)
    if (
        shape is None
        or not any(s in found for s in sources)
        or not isinstance(node.target, torch._ops.OpOverload)
    ):
        return None
    if not all(s in found or s.op == "get_attr" for s in sources):
        return None
    move = _MOVES.get(node.target)
    if move is not None:
        source = sources[0]
        before = _shape(coupling, source)
        assert before is not None
        return move(bind(node), found[source], before, shape) if source in found else None
    if node.target is _aten.batch_norm.default:
        return 1 if not bind(node).training and all(found.get(s, 1) == 1 for s in sources) else None
    return _elementwise(coupling, sources, shape, found) if torch.Tag.pointwise in node.target.tags else None


def _elementwise(
    coupling: Coupling, sources: list[fx.Node], shape: _Shape, found: Mapping[fx.Node, int]
) -> int | None:
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
        (_aten.dropout.default, _aten.clone.default, _aten.contiguous.default, _aten.to.dtype, _aten.expand.default,
         torch.ops.fxprune.mark.default), _kept,
    ),
}  # fmt: skip


def constant_value(
    coupling: Coupling, constant: Mapping[fx.Node, int], node: fx.Node, tensors: Mapping[str, Tensor],
    memo: dict[fx.Node, Tensor],
) -> Tensor:  # fmt: skip
    """Returns a constant node's value, every dimension of size one but the channels'.

    Args:
        coupling: of the captured graph.
        constant: what `channel_dims` returned.
        node: one of those, or a parameter.
        tensors: replacements of parameters and buffers.
        memo: values that are known; grows.
    """

    def get(source: fx.Node) -> Tensor:
        return constant_value(coupling, constant, source, tensors, memo)

    if node not in memo:
        memo[node] = _value(coupling, constant, node, tensors, get)
    return memo[node]


def _value(
    coupling: Coupling, constant: Mapping[fx.Node, int], node: fx.Node, tensors: Mapping[str, Tensor],
    get: Callable[[fx.Node], Tensor],
) -> Tensor:  # fmt: skip
    if node.op == "get_attr":
        found: Tensor = fetch(coupling.captured.module, str(node.target))
        return tensors.get(str(node.target), found).detach()
    shape, dim = coupling.captured.info[node].shape, constant[node]
    place = [-1 if d == dim else 1 for d in range(len(shape))]
    if any(c.node is node for c in coupling.contractions):
        a = bind(node)
        added = getattr(a, "bias", None)
        return (get(a.weight).new_zeros(shape[dim]) if added is None else get(added)).reshape(place)
    if node.target in _MOVES and node.target is not _aten.to.dtype:
        return get(next(s for s in node.all_input_nodes if s in constant)).reshape(place)
    assert callable(node.target)
    result: Tensor = node.target(*fx.node.map_arg(node.args, get), **fx.node.map_arg(node.kwargs, get))
    return result

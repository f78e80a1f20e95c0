"""Norms over channels some of which are zero for every input are written out, so that they count them once these go.

A layer or group norm over what stays is another one, unless what goes was at the mean of what stays; a variance counts
zeros in the place of what goes. One that a model writes itself, the mean square of what is centred, is a variance: centred,
a channel of zeros is none.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import fx

from fxprune.capturing.captured import Captured
from fxprune.capturing.normalize.layout import dims_of
from fxprune.capturing.shapes import REFUSALS, describe, replay
from fxprune.capturing.sizes import Sizes
from fxprune.ops.dead import Dead, dead_channels
from fxprune.ops.registry import bind, is_kind, rule_of

aten = torch.ops.aten

_Write: TypeAlias = "Callable[[_Sheet], fx.Node]"


@dataclass(slots=True, eq=False)
class _Sheet:
    """A copy of a graph in the making.

    Attributes:
        captured: the original.
        graph: the copy.
        copies: of the original's nodes.
        node: the one that is written out.
    """

    captured: Captured
    graph: fx.Graph
    copies: dict[fx.Node, fx.Node]
    node: fx.Node

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        made = self.graph.call_function(target, args, kwargs)
        made.meta = {key: value for key, value in self.node.meta.items() if key in ("module", "nn_module_stack")}
        return made

    def sizes(self, node: fx.Node) -> list[Any]:
        """Returns the sizes of an original's value; those that vary as nodes."""
        info = self.captured.info[node]
        varies = [large != small for large, small in zip(info.shape, info.example, strict=True)]
        return [
            self.call(aten.sym_size.int, self.copies[node], d) if varies[d] else size
            for d, size in enumerate(info.shape)
        ]


def with_dead_counted(captured: Captured) -> Captured:
    """Returns the captured model with the norms written out that have dead channels among those they look at."""
    centred = _centred(captured)
    dead = dead_channels(captured, {bind(n).input for n in _candidates(captured)} | {c.of for c in centred.values()})
    writes, centred = _norms(captured, dead), _over_dead(centred, dead)
    writes |= {node: write for node in captured.module.graph.nodes if (write := _variance(captured, node, centred))}
    told = [*_told(writes), *_strange(captured, centred, writes)]
    written = _rewritten(captured, writes) if writes else captured
    return replace(written, notes=(*captured.notes, *told)) if told and written is not None else captured


def _rewritten(captured: Captured, writes: Mapping[fx.Node, _Write]) -> Captured | None:
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in captured.module.graph.nodes:
        if node in writes:
            copies[node] = writes[node](_Sheet(captured, graph, copies, node))
        else:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.eliminate_dead_code()
    module = fx.GraphModule(captured.module, graph)
    given = [captured.info[node] for node in captured.module.graph.find_nodes(op="placeholder")]
    try:
        large = replay(module, captured.example, [info.shape for info in given], Sizes({}))
        small = replay(module, captured.example, [info.example for info in given], Sizes({}))
    except REFUSALS:
        return None
    info = {node: describe(large.get(node), small.get(node)) for node in graph.nodes}
    info.update((copies[node], known) for node, known in captured.info.items() if copies.get(node) in info)
    return replace(captured, module=module, info=info)


# -- what is written out, and how -------------------------------------------------------------------------------------


def _candidates(captured: Captured) -> list[fx.Node]:
    """Returns the layer and group norms."""
    return [n for n in captured.module.graph.nodes if is_kind(n, "norm") and hasattr(bind(n), "bias")]


def _norms(captured: Captured, dead: Mapping[fx.Node, Dead]) -> dict[fx.Node, _Write]:
    """Returns the layer and group norms of whose channels some may go that are zero and others stay."""
    found: dict[fx.Node, _Write] = {}
    for node in _candidates(captured):
        a = bind(node)
        flags = dead.get(a.input, {})
        if hasattr(a, "num_groups"):  # the same position of every group goes
            if 1 in flags and bool(flags[1].reshape(a.num_groups, -1).all(dim=0).any()):
                found[node] = _group_norm
        elif any(dim >= len(captured.info[node].shape) - len(a.normalized_shape) for dim in flags):
            found[node] = _layer_norm
    return found


def _layer_norm(sheet: _Sheet) -> fx.Node:
    """Before: layer_norm(x).  After: (x - mean) / sqrt(variance + eps), with weight and bias."""
    a, rank = bind(sheet.node), len(sheet.captured.info[sheet.node].shape)
    over = [*range(rank - len(a.normalized_shape), rank)]
    y = _standardised(sheet, _in_full(sheet, sheet.copies[a.input]), over, a.eps)
    return _affine(sheet, y, *(None if x is None else sheet.copies[x] for x in (a.weight, a.bias)))


def _group_norm(sheet: _Sheet) -> fx.Node:
    """Before: group_norm(x[b, c, n]).  After: x[b, group, inner, n] standardised over inner and n, then as it was."""
    a = bind(sheet.node)
    first, channels, *rest = sheet.sizes(a.input)
    split = [first, a.num_groups, channels // a.num_groups, *rest]
    x = sheet.call(aten.reshape.default, _in_full(sheet, sheet.copies[a.input]), split)
    y = _standardised(sheet, x, [*range(2, len(split))], a.eps)
    y = sheet.call(aten.reshape.default, y, [first, channels, *rest])

    def along(vector: fx.Node | None) -> fx.Node | None:
        held = None if vector is None else sheet.copies[vector]
        for _ in rest if held is not None else ():
            held = sheet.call(aten.unsqueeze.default, held, -1)
        return held

    return _affine(sheet, y, along(a.weight), along(a.bias))


def _in_full(sheet: _Sheet, x: fx.Node) -> fx.Node:
    """Returns a value in the precision that norms work in."""
    half = sheet.captured.info[sheet.node].dtype.itemsize < 4
    return sheet.call(aten.to.dtype, x, torch.float32) if half else x


def _standardised(sheet: _Sheet, x: fx.Node, over: list[int], eps: float) -> fx.Node:
    both = sheet.call(aten.var_mean.correction, x, over, correction=0, keepdim=True)
    variance, mean = (sheet.call(operator.getitem, both, i) for i in range(2))
    scale = sheet.call(aten.rsqrt.default, sheet.call(aten.add.Tensor, variance, eps))
    return sheet.call(aten.mul.Tensor, sheet.call(aten.sub.Tensor, x, mean), scale)


def _affine(sheet: _Sheet, y: fx.Node, weight: fx.Node | None, bias: fx.Node | None) -> fx.Node:
    y = y if weight is None else sheet.call(aten.mul.Tensor, y, weight)
    y = y if bias is None else sheet.call(aten.add.Tensor, y, bias)
    dtype = sheet.captured.info[sheet.node].dtype
    return sheet.call(aten.to.dtype, y, dtype) if dtype.itemsize < 4 else y


# -- norms that a model writes itself ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Centred:
    """``of - mean(of)``: what the mean is over, and along which of these dimensions some of ``of`` is zero."""

    of: fx.Node
    over: frozenset[int]
    dim: int = -1


def _centred(captured: Captured) -> dict[fx.Node, _Centred]:
    found: dict[fx.Node, _Centred] = {}
    for node in captured.module.graph.find_nodes(op="call_function", target=aten.sub.Tensor):
        a = bind(node)
        mean = bind(a.other) if _is(a.other, aten.mean.dim) and a.alpha == 1 else None
        if mean is not None and mean.self is a.self and mean.keepdim:
            found[node] = _Centred(a.self, _over(captured, a.other))
    return found


def _over_dead(centred: Mapping[fx.Node, _Centred], dead: Mapping[fx.Node, Dead]) -> dict[fx.Node, _Centred]:
    """Returns those over channels of which some are zero."""
    dims = {node: sorted(known.over & dead.get(known.of, {}).keys()) for node, known in centred.items()}
    return {node: replace(centred[node], dim=among[-1]) for node, among in dims.items() if among}


def _is(node: Any, *targets: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def _over(captured: Captured, node: fx.Node) -> frozenset[int]:
    """Returns the dimensions of its first operand that an op reduces; all where it does not say."""
    a = bind(node)
    return frozenset(dims_of(getattr(a, "dim", None), len(captured.info[node.all_input_nodes[0]].shape)))


def _variance(captured: Captured, node: fx.Node, centred: Mapping[fx.Node, _Centred]) -> _Write | None:
    """Returns how the mean square of what is centred is written as a variance; None if a node is none."""
    if not _is(node, aten.mean.dim) or bind(node).dtype is not None:
        return None
    known = centred.get(_root(bind(node).self))
    if known is None or known.over != _over(captured, node):
        return None

    def write(sheet: _Sheet) -> fx.Node:
        x, keepdim = sheet.copies[known.of], bind(node).keepdim
        return sheet.call(aten.var.correction, x, sorted(known.over), correction=0, keepdim=keepdim)

    return write


def _root(node: Any) -> Any:
    """Returns what a node is the square of."""
    if _is(node, aten.pow.Tensor_Scalar) and bind(node).exponent == 2:
        return node.args[0]
    squares = _is(node, aten.square.default) or (_is(node, aten.mul.Tensor) and node.args[0] is node.args[1])
    return node.args[0] if squares else None


# -- what is told -----------------------------------------------------------------------------------------------------


def _told(writes: Mapping[fx.Node, _Write]) -> list[str]:
    if not writes:
        return []
    places = ", ".join(dict.fromkeys(map(_place, writes)))
    return [f"norms are written out, since some of their channels are zero for every input: {places}"]


def _strange(captured: Captured, centred: Mapping[fx.Node, _Centred], writes: Mapping[fx.Node, _Write]) -> list[str]:
    """Names what looks at centred channels in another way: where they were zero before, they are none there."""
    spoiled, found = {node: known.dim for node, known in centred.items()}, list[fx.Node]()
    for node in captured.module.graph.nodes:
        rule = rule_of(node.target) if node.op == "call_function" else None
        sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
        if rule is None or len(sources) != 1 or sources[0] not in spoiled or node in writes:
            continue
        dim = spoiled[sources[0]]
        if rule.statistic and dim in _over(captured, node):
            found.append(node)
        elif is_kind(node, "elementwise") or rule.scales:
            spoiled[node] = dim
    places = ", ".join(dict.fromkeys(map(_place, found)))
    told = "some of their channels are zero for every input before a mean is taken off; without these they are not what they were"
    return [f"statistics of centred channels: {places}: {told}"] if found else []


def _place(node: fx.Node) -> str:
    return node.meta.get("module") or node.name

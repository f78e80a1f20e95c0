"""Dead channels: layer norms over channels that are zero for every input are written out.

A plain norm over what stays is another one, unless what goes was at the mean of what stays. Written out as means of the
values and of their squares it counts zeros as the original does: a mean of what stays takes the share as a factor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx

from fxprune._base.names import fetch
from fxprune.capturing.captured import Captured, TensorInfo
from fxprune.capturing.shapes import REFUSALS, describe, replay
from fxprune.capturing.sizes import Sizes
from fxprune.ops.constants import Constants
from fxprune.ops.registry import bind, is_kind, rule_of

aten = torch.ops.aten


@dataclass(frozen=True, slots=True, eq=False)
class Zeros:
    """Channels of a value that are zero for every input: flags ``[channels]``, and the dimension that they lie along."""

    dim: int
    flags: Tensor


def with_dead_counted(captured: Captured) -> Captured:
    """Returns the captured model with the norms written out that have dead channels among those they look at."""
    norms = {node for node, dead in _norms(captured).items() if bool(dead.flags.any()) and not bool(dead.flags.all())}
    if not norms:
        return captured
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in captured.module.graph.nodes:
        copies[node] = _written(graph, node, copies) if node in norms else graph.node_copy(node, copies.__getitem__)
    module = fx.GraphModule(captured.module, graph)
    given = [captured.info[node] for node in captured.module.graph.find_nodes(op="placeholder")]
    try:
        large = replay(module, captured.example, [info.shape for info in given], Sizes({}))
        small = replay(module, captured.example, [info.example for info in given], Sizes({}))
    except REFUSALS:
        return captured
    info = {node: describe(large.get(node), small.get(node)) for node in graph.nodes}
    info.update((copies[node], known) for node, known in captured.info.items() if node in copies)
    told = f"written out, since some of their channels are zero for every input: {', '.join(map(_place, norms))}"
    return replace(captured, module=module, info=info, notes=(*captured.notes, f"norms are {told}"))


def _place(node: fx.Node) -> str:
    return node.meta.get("module") or node.name


def _norms(captured: Captured) -> dict[fx.Node, Zeros]:
    """Returns the norms over channels that may be written out, with what is zero of their inputs."""
    zeros, found = dict[fx.Node, Zeros](), dict[fx.Node, Zeros]()
    for node in captured.module.graph.nodes:
        if node.op != "call_function" or not isinstance(captured.info.get(node), TensorInfo):
            continue
        before = zeros.get(bind(node).input) if is_kind(node, "norm") else None
        if before is not None and _plain(captured, node, before):
            found[node] = before
        if (dead := _follow(captured, node, zeros)) is not None:
            zeros[node] = dead
    return found


def _plain(captured: Captured, node: fx.Node, dead: Zeros) -> bool:
    """Returns whether a norm looks at channels and takes their mean, in a precision that bears squares."""
    a, info = bind(node), captured.info[node]
    over_last = getattr(a, "normalized_shape", None) is not None and len(a.normalized_shape) == 1
    return hasattr(a, "bias") and over_last and dead.dim == len(info.shape) - 1 and info.dtype.itemsize >= 4


def _follow(captured: Captured, node: fx.Node, zeros: Mapping[fx.Node, Zeros]) -> Zeros | None:
    """Returns which channels of an op's result are zero, if that is known."""
    rule, rank = rule_of(node.target), len(captured.info[node].shape)
    sources = [source for source in node.all_input_nodes if isinstance(captured.info.get(source), TensorInfo)]
    if rule is None or not sources:
        return None
    a = bind(node)
    if is_kind(node, "linear", "conv", "embedding"):
        return _made(captured, node, a, rank)
    if is_kind(node, "addition") or rule.scales:
        return _joined(captured, sources, zeros, rank, every=not rule.scales)
    if sources[0] not in zeros or len(sources) != 1:
        return None
    first = zeros[sources[0]]
    if rule.moves is not None:
        dim = rule.moves(Constants(captured.info, {sources[0]: first.dim}), node, a)
        fits = dim is not None and captured.info[node].shape[dim] == len(first.flags)
        return Zeros(dim, first.flags) if dim is not None and fits else None
    return first if is_kind(node, "elementwise") and _keeps_zero(node) else None


def _made(captured: Captured, node: fx.Node, a: SimpleNamespace, rank: int) -> Zeros | None:
    """Returns the outputs of a layer whose weights, and bias, are all zero."""
    held = [a.weight, getattr(a, "bias", None)]
    if any(x is not None and x.op != "get_attr" for x in held):
        return None
    weight = fetch(captured.module, str(a.weight.target)).detach()
    if weight.is_meta:
        return None
    rows = weight.movedim(1 if is_kind(node, "embedding") else 0, 0).flatten(1)
    flags = (rows == 0).all(dim=1)
    if held[1] is not None:
        flags &= fetch(captured.module, str(held[1].target)).detach() == 0
    return Zeros(1 if is_kind(node, "conv") else rank - 1, flags.cpu())


def _joined(
    captured: Captured, sources: list[fx.Node], zeros: Mapping[fx.Node, Zeros], rank: int, *, every: bool
) -> Zeros | None:
    """Returns the channels that are zero in every operand, or in any; operands that are not known have none."""
    known = [zeros[s] for s in sources if s in zeros and len(captured.info[s].shape) == rank]
    if not known or (every and len(known) < len(sources)) or len({(z.dim, len(z.flags)) for z in known}) > 1:
        return None
    flags = torch.stack([z.flags for z in known])
    return Zeros(known[0].dim, flags.all(dim=0) if every else flags.any(dim=0))


def _keeps_zero(node: fx.Node) -> bool:
    """Returns whether an op of one value makes zero of zero."""
    zero = torch.zeros(1)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda _: zero)
    assert callable(node.target)
    try:
        value: Any = node.target(*args, **kwargs)
    except REFUSALS:
        return False
    return isinstance(value, Tensor) and not bool(value.any())


def _written(graph: fx.Graph, node: fx.Node, copies: Mapping[fx.Node, fx.Node]) -> fx.Node:
    """Before: layer_norm(x).  After: (x - E[x]) / sqrt(E[x^2] - E[x]^2 + eps), with weight and bias."""
    a = bind(node)

    def call(target: Any, *args: Any) -> fx.Node:
        made = graph.call_function(target, args)
        made.meta = {key: value for key, value in node.meta.items() if key in ("module", "nn_module_stack")}
        return made

    x = copies[a.input]
    mean = call(aten.mean.dim, x, [-1], True)
    squares = call(aten.mean.dim, call(aten.mul.Tensor, x, x), [-1], True)
    variance = call(aten.relu.default, call(aten.sub.Tensor, squares, call(aten.mul.Tensor, mean, mean)))
    scale = call(aten.rsqrt.default, call(aten.add.Tensor, variance, a.eps))
    y = call(aten.mul.Tensor, call(aten.sub.Tensor, x, mean), scale)
    y = call(aten.mul.Tensor, y, copies[a.weight]) if a.weight is not None else y
    return call(aten.add.Tensor, y, copies[a.bias]) if a.bias is not None else y

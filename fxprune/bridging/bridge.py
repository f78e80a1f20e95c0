"""Bridge: layers on the only path that lose all their units go, and the next layer reads what they read.

What a bridge leaves is another model of the same call: the weights that read the lost units are made anew, so it is for
networks that are trained again from scratch (SPvR, section 3.3). There is nothing to verify it against; what is
pruned beside it is verified against the bridged model.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune._base.names import fetch, place
from fxprune.bridging.span import Span, carries, find_span, is_pointwise
from fxprune.capturing.captured import Captured, TensorInfo
from fxprune.capturing.normalize import drop_dead
from fxprune.capturing.shapes import REFUSALS, describe, replay
from fxprune.capturing.sizes import Sizes
from fxprune.coupling.blocks import has_blocks, with_blocks
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.interpreter import couple
from fxprune.coupling.units import Group
from fxprune.ops.registry import bind, is_kind
from fxprune.ops.tracer import Contraction


@dataclass(frozen=True, slots=True, eq=False)
class Bridged:
    """A captured model without some groups.

    Attributes:
        captured: the model that is left.
        coupling: of it.
        groups: the names of the groups that are gone.
        remade: the weights that were made anew, with their shapes.
    """

    captured: Captured
    coupling: Coupling
    groups: tuple[str, ...] = ()
    remade: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def bridge(coupling: Coupling, groups: Iterable[str], seed: int = 0) -> Bridged | None:
    """Returns the model without some groups, one bridged after another; None if one cannot be.

    Groups that are not there (inside a stage that has gone) are passed over. The original is left as it is.

    Args:
        coupling: of the captured model.
        groups: names of groups.
        seed: of the new weights.
    """
    names = tuple(groups)
    found = Bridged(coupling.captured, coupling, names)
    for name in names:
        group = next((g for g in found.coupling.groups if g.name == name), None)
        if group is not None:
            step = _bridged(found.coupling, group, seed)
            if step is None:
                return None
            found = replace(step, groups=names, remade={**found.remade, **step.remade})
    return found


def _bridged(coupling: Coupling, group: Group, seed: int) -> Bridged | None:
    span = find_span(coupling, group)
    if span is None:
        return None
    captured = coupling.captured
    nodes: dict[fx.Node, fx.Node] = {}
    graph = fx.Graph()
    result = graph.graph_copy(captured.module.graph, nodes)
    output = graph.output(result)
    output.meta = dict(next(n for n in captured.module.graph.nodes if n.op == "output").meta)
    entry = _at_size(coupling, graph, span, nodes)
    if entry is None:
        return None
    before, after = (_width(coupling, node) for node in (span.exit, span.entry))
    nodes[span.exit].replace_all_uses_with(entry, delete_user_cb=lambda user: user is not entry)
    for node in span.reshapes:
        sizes = _rescaled(coupling, node, group, before, after)
        if sizes is None:
            return None
        nodes[node].args = (nodes[node].args[0], [nodes.get(s, s) if isinstance(s, fx.Node) else s for s in sizes])
    drop_dead(graph)
    module = fx.GraphModule(captured.module, graph)
    remade = _remake(captured, module, span.readers, before, after, seed)
    if remade is None:
        return None
    smaller = _understood(captured, _without_idle_pools(captured, module))
    if smaller is None:
        return None
    left = couple(smaller)
    return Bridged(smaller, with_blocks(left) if has_blocks(coupling) else left, (group.name,), remade)


def _width(coupling: Coupling, node: fx.Node) -> int:
    """Returns the number of channels of a value: dimension 1 of maps, the last one of tokens and vectors."""
    info: TensorInfo = coupling.captured.info[node]
    return info.example[1] if len(info.example) > 3 else info.example[-1]


def _at_size(coupling: Coupling, graph: fx.Graph, span: Span, nodes: Mapping[fx.Node, fx.Node]) -> fx.Node | None:
    """Returns the value before the bridge at the size of the value behind it, pooled where it is larger."""
    inputs, outputs = (coupling.captured.info[node].example for node in (span.entry, span.exit))
    if len(inputs) != len(outputs) or inputs[0] != outputs[0]:
        return None
    if len(inputs) <= 3:
        return nodes[span.entry] if inputs[:-1] == outputs[:-1] else None
    ratios = [a // b if b and a % b == 0 else 0 for a, b in zip(inputs[2:], outputs[2:], strict=True)]
    if not all(ratios):
        return None
    if all(ratio == 1 for ratio in ratios):
        return nodes[span.entry]
    with graph.inserting_before(nodes[span.exit]):
        pool = graph.call_function(
            getattr(torch.ops.aten, f"avg_pool{len(ratios)}d").default, (nodes[span.entry], ratios, ratios)
        )
    pool.meta = {key: value for key, value in span.exit.meta.items() if key == "module"}
    return pool


def _rescaled(coupling: Coupling, node: fx.Node, group: Group, before: int, after: int) -> list[Any] | None:
    """Returns the sizes of a reshape for another number of units; None if they do not follow from it."""
    ids = coupling.units[group.units]
    sizes: list[Any] = list(bind(node).shape)
    for dim, axis in enumerate(coupling.values[node]):
        if carries(coupling, axis, ids) and sizes[dim] != -1:
            if not isinstance(sizes[dim], int) or sizes[dim] % before:
                return None
            sizes[dim] = sizes[dim] // before * after
    return sizes


def _remake(
    captured: Captured, module: fx.GraphModule, readers: Sequence[Contraction], before: int, after: int, seed: int
) -> dict[str, tuple[int, ...]] | None:
    """Gives the readers' weights their new width, drawn anew by their modules' own rule."""
    remade = {}
    for reader in readers:
        assert reader.weight is not None
        name = str(reader.weight.target)
        old = fetch(captured.module, name)
        size = old.shape[reader.weight_dim]
        if name in remade or size % before or len(reader.weight.users) > 1:
            return None
        shape = list(old.shape)
        shape[reader.weight_dim] = size // before * after
        place(module, name, nn.Parameter(_drawn(captured.model, name, shape, old, seed)), persistent=True)
        remade[name] = tuple(shape)
    return remade


def _drawn(model: nn.Module, name: str, shape: Sequence[int], like: Tensor, seed: int) -> Tensor:
    path, _, field = name.rpartition(".")
    owner = dict(model.named_modules()).get(path)
    weight = nn.Parameter(torch.empty(list(shape), dtype=like.dtype, device=like.device))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reset = getattr(owner, "reset_parameters", None)
        if owner is not None and callable(reset) and field in owner._parameters:
            fresh = copy.copy(owner)
            fresh._parameters = {
                k: None if p is None else nn.Parameter(p.detach().clone()) for k, p in owner._parameters.items()
            }
            fresh._parameters[field] = weight
            fresh.reset_parameters()
        else:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    return weight.detach()


def _without_idle_pools(captured: Captured, module: fx.GraphModule) -> fx.GraphModule:
    """Returns the graph without poolings between which no layer is left, where the outputs keep their shapes."""
    for node in list(module.graph.nodes):
        if is_kind(node, "pool") and _idle(node):
            trial: dict[fx.Node, fx.Node] = {}
            graph = fx.Graph()
            graph.output(graph.graph_copy(module.graph, trial))
            trial[node].replace_all_uses_with(trial[node.all_input_nodes[0]])
            drop_dead(graph)
            smaller = fx.GraphModule(module, graph)
            if _understood(captured, smaller) is not None:
                return _without_idle_pools(captured, smaller)
    return module


def _idle(pool: fx.Node) -> bool:
    """Whether nothing but activations lies between a pooling and the one before it, or the input."""
    node: Any = pool.args[0]
    while isinstance(node, fx.Node) and node.op == "call_function" and is_pointwise(node):
        node = node.all_input_nodes[0]
    return isinstance(node, fx.Node) and (is_kind(node, "pool") or node.op == "placeholder")


def _understood(captured: Captured, module: fx.GraphModule) -> Captured | None:
    """Returns a captured model around a new graph; None if its outputs have other shapes or it cannot run."""
    old = [n for n in captured.module.graph.nodes if n.op == "placeholder"]
    shapes = [(captured.info[n].shape, captured.info[n].example) for n in old]
    try:
        large = replay(module, captured.example, [s for s, _ in shapes], Sizes({}))
        small = replay(module, captured.example, [e for _, e in shapes], Sizes({}))
    except REFUSALS:
        return None
    info = {node: describe(large.get(node), small.get(node)) for node in module.graph.nodes}
    if _results(module.graph, info) != _results(captured.module.graph, captured.info):
        return None
    return replace(captured, module=module, info=info)


def _results(graph: fx.Graph, info: Mapping[fx.Node, Any]) -> list[Any]:
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    return [info.get(node) for node in output.all_input_nodes]

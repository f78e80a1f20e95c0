"""Effective weights: what a parametrisation or a hook computes from parameters alone becomes one plain tensor.

A weight under weight norm, spectral norm, a mask of ``torch.nn.utils.prune`` or a parametrisation of the user's is in the
graph as some parameters and what is computed from them. What acts is the result: criteria judge it, recovery changes it,
and of what stays it is what it was before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from fxprune._base.names import layer_of
from fxprune.capturing.flatten import Flat
from fxprune.capturing.normalize.edit import fake, writes
from fxprune.capturing.state import State

#: What ``torch.nn.utils`` calls the tensors that a hook computes another one from: its name and one of these.
_SUFFIXES = ("_g", "_v", "_orig", "_u", "_mask")


@dataclass(frozen=True, slots=True)
class Computed:
    """A tensor of a module that is computed from others each time.

    Attributes:
        name: its dotted name, which is none of a parameter or buffer.
        shape: its sizes.
        sources: the names of the parameters and buffers that it is computed from.
        by: what computes it, for people.
    """

    name: str
    shape: tuple[int, ...]
    sources: frozenset[str]
    by: str


@dataclass(frozen=True, slots=True, eq=False)
class Folded:
    """A tensor that takes the place of what was computed.

    Attributes:
        name: its dotted name.
        sources: names of the parameters and buffers that it was computed from, a parameter of its shape first.
        by: what computed it, for people.
        tensor: its value, ``[...]``.
    """

    name: str
    sources: tuple[str, ...]
    by: str
    tensor: Tensor


def fold_weights(flat: Flat, model: nn.Module, state: State) -> list[Folded]:
    """Replaces computed weights by their values, in place, and returns them.

    One stays as it is where that would change what the model computes or says: it draws random numbers, writes, is not the
    same at each use, has no values (a model on the meta device), or what it is computed from is read elsewhere too.

    Args:
        flat: an exported graph, before it is normalised.
        model: its model; read only.
        state: its tensors.
    """
    found = [_fold(flat, state, computed) for computed in _computed(model)]
    return [folded for folded in found if folded is not None]


def _computed(model: nn.Module) -> Iterator[Computed]:
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if parametrize.is_parametrized(module):
            assert isinstance(module.parametrizations, nn.ModuleDict)
            for name, steps in module.parametrizations.items():
                own = [*steps.named_parameters(), *steps.named_buffers()]
                sources = frozenset(f"{prefix}parametrizations.{name}.{source}" for source, _ in own)
                by = ", ".join(type(step).__name__.lstrip("_") for step in steps.children())
                yield Computed(prefix + name, _shape(module, name), sources, by)
        held = {**module._parameters, **module._buffers}
        for hook in module._forward_pre_hooks.values():
            hooked = getattr(hook, "name", None) or getattr(hook, "_tensor_name", None)
            if isinstance(hooked, str) and hooked not in held:
                sources = frozenset(f"{prefix}{hooked}{end}" for end in _SUFFIXES if f"{hooked}{end}" in held)
                yield Computed(prefix + hooked, _shape(module, hooked), sources, type(hook).__name__)


@torch.no_grad()
def _shape(module: nn.Module, name: str) -> tuple[int, ...]:
    value = getattr(module, name, None)
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _fold(flat: Flat, state: State, computed: Computed) -> Folded | None:
    sources = {state.canonical[name] for name in computed.sources}
    begin = [node for node in flat.graph.find_nodes(op="get_attr") if node.target in sources]
    inner = _inner(flat.graph, begin)
    results = _results(inner, computed.shape)
    if not results or _leaks(begin, inner, results):
        return None
    value = _value(flat, [*begin, *inner], results)
    if value is None:
        return None
    learns = any(flat.tensors[str(node.target)].requires_grad for node in begin)
    tensor: Tensor = nn.Parameter(value, requires_grad=learns and value.is_floating_point())
    flat.tensors[computed.name] = tensor
    held = flat.graph.find_nodes(op="get_attr")
    layer = layer_of(computed.name)
    with flat.graph.inserting_before(next(n for n in held if n in begin or layer_of(str(n.target)) == layer)):
        new = flat.graph.create_node("get_attr", computed.name, name=computed.name.replace(".", "_"))
    new.meta = {"val": results[0].meta["val"], "module": ""}
    for node in results:
        node.replace_all_uses_with(new)
    for node in reversed([*begin, *inner]):
        if not node.users:
            flat.graph.erase_node(node)

    def unlike(name: str) -> tuple[bool, bool, str]:
        return state.tensors[name].shape != value.shape, name not in state.parameters, name

    return Folded(computed.name, tuple(sorted(sources, key=unlike)), computed.by, tensor)


def _inner(graph: fx.Graph, begin: list[fx.Node]) -> list[fx.Node]:
    """Returns the nodes that depend on these tensors and constants alone."""
    inside = set(begin)
    for node in graph.nodes:
        if node.op == "call_function" and node.all_input_nodes and inside.issuperset(node.all_input_nodes):
            inside.add(node)
    return [node for node in graph.nodes if node in inside and node not in begin]


def _results(inner: list[fx.Node], shape: tuple[int, ...]) -> list[fx.Node]:
    """Returns the last values of a shape: what else is computed of them alone has another."""
    before: set[fx.Node] = set()
    found: list[fx.Node] = []
    for node in reversed(inner):
        value = fake(node)
        if value is not None and tuple(value.shape) == shape and node not in before:
            found.append(node)
            before.add(node)
        if node in before:
            before.update(node.all_input_nodes)
    return found[::-1]


def _leaks(begin: list[fx.Node], inner: list[fx.Node], results: list[fx.Node]) -> bool:
    """Says whether anybody else reads what the results are computed from."""
    inside, raw = {*begin, *inner}, set(begin)
    raw.update(node for node in inner if node not in results and not raw.isdisjoint(node.all_input_nodes))
    return any(user not in inside for node in raw for user in node.users)


def _value(flat: Flat, nodes: list[fx.Node], results: list[fx.Node]) -> Tensor | None:
    """Returns the value of the results, ``[...]``; None if they differ or there is none."""
    values = {}
    for node in nodes:
        tags = getattr(node.target, "tags", ())
        if writes(node) or torch.Tag.nondeterministic_seeded in tags:
            return None
        if node.op == "get_attr":
            values[node] = flat.tensors[str(node.target)].detach()
            if values[node].is_meta:
                return None
        else:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            assert callable(node.target)
            with torch.no_grad():
                values[node] = node.target(*args, **kwargs)
    first: Tensor = values[results[0]]
    same = all(torch.equal(values[node], first) for node in results)
    return first.detach().clone() if same else None

"""From the sliced flat graph to an ordinary module: real layers under their original names, own tensors."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from fxprune._base.names import fetch, place
from fxprune._base.shelf import Shelf
from fxprune.capturing.captured import MARK, Captured, TensorInfo
from fxprune.capturing.functions import FUNCTION, call_of
from fxprune.capturing.regions import Autocasts
from fxprune.coupling.selection import Selection
from fxprune.ops.layers import CustomFunction, ScaledDotProductAttention
from fxprune.ops.modules import Noise
from fxprune.ops.registry import is_kind, rule_of
from fxprune.rewriting.extremes import Extremes
from fxprune.rewriting.owners import Call, Owners, arguments, find_call, join
from fxprune.rewriting.pruned import RESTING, PrunedModule
from fxprune.rewriting.slicing import slice_graph
from fxprune.rewriting.tree import build_tree


@dataclass(slots=True)
class _Emission:
    """What is known and made so far while one graph is emitted.

    Attributes:
        owners: the original's modules and tensors; read only.
        live: nodes of the sliced graph that its result needs.
        tensors: what the live part of the sliced graph reads, by name; read only.
        calls: node -> path and inputs of the module call that it becomes.
        layers: path -> module that holds tensors of the original.
        extras: path -> module that holds none: dropout, attention, stochastic depth.
        aliased: node -> the node that it is equal to.
        taken: names that a new module must not have.
    """

    owners: Owners
    live: Set[fx.Node]
    tensors: Mapping[str, Any]
    calls: dict[fx.Node, tuple[str, tuple[Any, ...]]] = field(default_factory=dict)
    layers: dict[str, nn.Module] = field(default_factory=dict)
    extras: dict[str, nn.Module] = field(default_factory=dict)
    aliased: dict[fx.Node, fx.Node] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)


def emitted(selection: Selection, shelf: Shelf | None = None) -> PrunedModule:
    """Returns what is left of a captured model as a module of its own (see `emit`), its tensors on a shelf if there is one."""
    return emit(selection.coupling.captured, slice_graph(selection, shelf), shelf)


def emit(captured: Captured, sliced: fx.GraphModule, shelf: Shelf | None = None) -> PrunedModule:
    """Returns the sliced graph as a module of its own, in eval mode.

    Layers are plain ``torch.nn`` modules at the paths that they had, parameters that no layer holds stay under their
    names, tied tensors stay one object, and what is random in training is random again after ``train()``. The
    result shares no storage with the user's model or with ``sliced``, and neither is changed.

    Args:
        captured: the captured model: its modules give the hyper-parameters that a graph cannot say.
        sliced: a flat graph like ``captured.module``, with its tensors sliced and its literals edited.
        shelf: has those tensors that are not to be copied.
    """
    emission = _begin(captured.model, sliced)
    ranks = {node.name: len(info.shape) for node, info in captured.info.items() if isinstance(info, TensorInfo)}
    nodes = [node for node in sliced.graph.nodes if node in emission.live]
    _find_layers(emission, nodes, ranks)
    _find_extras(emission, nodes)
    root = build_tree(captured.model, emission.owners, emission.layers, emission.tensors, captured.folded, shelf or ())
    for path, module in emission.extras.items():
        place(root, path, module)
    extremes = Extremes({node.name: info for node, info in captured.info.items()}, emission.tensors)
    pruned = PrunedModule(
        root, _write_graph(emission, sliced.graph, extremes), captured.call, type(captured.model).__name__
    )
    pruned.graph.lint()
    if captured.resting:
        vars(pruned)[RESTING] = _resting(emission, captured, pruned)
    return pruned.eval()


def _resting(emission: _Emission, captured: Captured, pruned: nn.Module) -> tuple[str, ...]:
    """Returns the modules that stay in evaluation mode, with those that were put in where they make calls."""

    def origin(path: str) -> str | None:
        while path not in emission.owners.modules:
            path = path.rpartition(".")[0]
        return emission.owners.home(path)

    return tuple(path for path, _ in pruned.named_modules() if origin(path) in captured.resting)


def _begin(model: nn.Module, sliced: fx.GraphModule) -> _Emission:
    owners = Owners.of(model)
    live: set[fx.Node] = set()
    for node in reversed(sliced.graph.nodes):
        if node.op == "placeholder" or node.is_impure() or any(user in live for user in node.users):
            live.add(node)
    names = dict.fromkeys(str(node.target) for node in sliced.graph.nodes if node.op == "get_attr" and node in live)
    tensors = {name: fetch(sliced, name) for name in names}
    return _Emission(owners, live, tensors, taken={*owners.modules, *owners.aliases, *tensors})


# -- which nodes become which modules -------------------------------------------------------------------------------


def _find_layers(emission: _Emission, nodes: Iterable[fx.Node], ranks: Mapping[str, int]) -> None:
    """Finds the calls of the original's layers; where two calls of one layer differ, the second stays an op."""
    used = {alias for name in emission.tensors for alias in emission.owners.names(name)}
    found: dict[str, Call] = {}
    for node in nodes:
        call = find_call(node, emission.owners, emission.tensors, used, ranks.get(node.name))
        if call is not None and call.path and found.setdefault(call.path, call).key == call.key:
            emission.calls[node] = call.path, call.inputs
    emission.layers.update((path, call.module) for path, call in found.items())


def _find_extras(emission: _Emission, nodes: Iterable[fx.Node]) -> None:
    """Finds the calls of what an eval-mode graph lost: dropout, attention with dropout, stochastic depth."""
    for node in nodes:
        if node.target is MARK:
            _restore_marked(emission, node)
        elif node.target is FUNCTION:
            _restore_function(emission, node)
        elif (noise := _noise_of(node)) is not None:
            _restore_noise(emission, node, noise)
        elif is_kind(node, "attention") and node.meta.get("dropout_p", 0.0) > 0:
            _restore_attention(emission, node)


def _restore_marked(emission: _Emission, node: fx.Node) -> None:
    values = arguments(node)
    path = emission.owners.home(values["path"])
    assert path is not None, f"{node} marks {values['path']!r}, which the model does not have"
    if path not in emission.extras:
        emission.extras[path] = copy.deepcopy(emission.owners.modules[path])
    emission.calls[node] = path, (values["x"],)


def _restore_function(emission: _Emission, node: fx.Node) -> None:
    values = arguments(node)
    call = call_of(values["key"])
    assert call.place is not None
    path = _fresh(emission, node, "function")
    emission.extras[path] = CustomFunction(call.function, call.args, call.place)
    emission.calls[node] = path, (values["x"],)


def _noise_of(node: fx.Node) -> Noise | None:
    rule = rule_of(node.target) if node.op == "call_function" else None
    return rule.module if rule is not None and isinstance(rule.module, Noise) else None


def _restore_noise(emission: _Emission, node: fx.Node, noise: Noise) -> None:
    values = arguments(node)
    if values[noise.flag]:
        return
    if values.get("p") == 0 and not isinstance(_innermost(emission, node), noise.owners):
        emission.aliased[node] = values[noise.input]
        return
    path = _original_noise(emission, node, noise)
    if path is None:
        path = _fresh(emission, node, "dropout" if "p" in values else "noise")
        emission.extras[path] = noise.functional(**{name: values[name] for name in noise.fields})
    emission.calls[node] = path, (values[noise.input],)


def _original_noise(emission: _Emission, node: fx.Node, noise: Noise) -> str | None:
    """Returns the path of the original module that made the call, put there as its plain class."""
    owner = _innermost(emission, node)
    plain = next((cls for cls in noise.owners if isinstance(owner, cls)), None)
    if plain is None or owner is None:
        return None
    path = emission.owners.paths[id(owner)]
    if path not in emission.extras:
        emission.extras[path] = plain(**{name: getattr(owner, name) for name in noise.fields})
    return path


def _restore_attention(emission: _Emission, node: fx.Node) -> None:
    values = arguments(node)
    if values.pop("dropout_p") != 0:
        return
    path = _fresh(emission, node, "attention")
    emission.extras[path] = ScaledDotProductAttention(node.meta["dropout_p"])
    emission.calls[node] = path, tuple(values.values())


def _innermost(emission: _Emission, node: fx.Node) -> nn.Module | None:
    return emission.owners.modules.get(node.meta.get("module", "\0"))


def _fresh(emission: _Emission, node: fx.Node, name: str) -> str:
    """Returns a new path for a module under the one whose forward made the call."""
    home = emission.owners.home(node.meta.get("module")) or ""
    paths = (join(home, f"{name}_{i}" if i else name) for i in itertools.count())
    path = next(path for path in paths if path not in emission.taken)
    emission.taken.add(path)
    return path


# -- the graph ------------------------------------------------------------------------------------------------------


def _write_graph(emission: _Emission, sliced: fx.Graph, extremes: Extremes) -> fx.Graph:
    """Returns the graph with module calls; each tensor is read once, right before its first use."""
    graph = fx.Graph()
    autocasts = Autocasts(graph)
    copies: dict[fx.Node, fx.Node] = {}
    read: dict[str, fx.Node] = {}

    def copied(node: fx.Node) -> fx.Node:
        if node.op != "get_attr":
            return copies[node]
        name = str(node.target)
        if name not in read:
            read[name] = graph.create_node("get_attr", name, name=node.name)
        return read[name]

    for node in sliced.nodes:
        if node not in emission.live or node.op == "get_attr":
            continue
        if node in emission.aliased:
            copies[node] = copied(emission.aliased[node])
            continue
        autocasts.switch(node)
        if node in emission.calls:
            path, inputs = emission.calls[node]
            copies[node] = graph.create_node("call_module", path, fx.map_arg(inputs, copied), name=node.name)
        else:
            args, kwargs = extremes.followed(node, copied, graph)
            copies[node] = graph.create_node(node.op, node.target, args, kwargs, node.name, node.type)
    return graph

"""Effective weights: what a parametrisation, a hook or a forward computes from parameters alone becomes one plain tensor.

A weight under weight norm, spectral norm, a mask of ``torch.nn.utils.prune`` or a parametrisation of the user's is in the
graph as some parameters and what is computed from them. What acts is the result: criteria judge it, recovery changes it,
and of what stays it is what it was before. So is a weight that a layer's own forward standardises; what it computes without a
statistic (a product, a sum, a concatenation) is right channel by channel, and stays computed.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from fxprune._base.modes import untouched
from fxprune._base.names import layer_of
from fxprune.capturing.flatten import Flat
from fxprune.capturing.learning import cuts, evaluated, trains_alike
from fxprune.capturing.normalize.edit import aten, fake, insert, is_op, named, schema_args
from fxprune.capturing.state import State

#: What ``torch.nn.utils`` calls the tensors that a hook computes another one from: its name and one of these.
_SUFFIXES = ("_g", "_v", "_orig", "_u", "_mask")


_LAYERS = named("linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution embedding")
_PRODUCTS = named("matmul mm bmm addmm baddbmm einsum mv dot")

#: What looks at a weight as a whole: removing some of its channels would change the others.
_STATISTICS = named(
    "batch_norm instance_norm layer_norm group_norm rms_norm _weight_norm var std var_mean std_mean mean norm linalg_norm "
    "linalg_vector_norm linalg_matrix_norm mv dot vdot"
)


#: What else may go into a weight that takes the place of a parameter: its numbers stay where they are.
_IN_PLACE = named(
    "reshape view reshape_as view_as unsqueeze squeeze flatten unflatten expand expand_as detach clone alias contiguous to "
    "_to_copy type_as select slice sum amax amin"
)


@dataclass(frozen=True, slots=True)
class Computed:
    """A tensor of a module that is computed from others each time.

    Attributes:
        name: its dotted name; that of the parameter it is made of, where a forward of the layer's own computes it.
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
        alike: whether it trains as what it was computed from did: it has the same gradient, or takes the place of all of that.
    """

    name: str
    sources: tuple[str, ...]
    by: str
    tensor: Tensor
    alike: bool


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
    found += [_fold(flat, state, computed) for computed in _standardised(flat.graph, model, state)]
    return [folded for folded in found if folded is not None]


def left_computed(graph: fx.Graph) -> list[str]:
    """Returns the modules whose weights are computed with a statistic of parameters, once `fold_weights` is through."""
    return list(dict.fromkeys(str(weight.meta.get("module")) for weight, _ in _with_statistics(graph)))


def _with_statistics(graph: fx.Graph) -> Iterator[tuple[fx.Node, list[fx.Node]]]:
    """Yields the weights of layers that are computed from parameters alone, with a statistic, and what goes into each."""
    constant = {node for node in graph.nodes if node.op == "get_attr"}
    for node in graph.nodes:
        if node.op == "call_function" and node.all_input_nodes and constant.issuperset(node.all_input_nodes):
            constant.add(node)
        for weight in _weights(node) if node not in constant else ():
            behind = _behind(weight) if weight in constant else []
            if any(is_op(one, *_STATISTICS) for one in behind):
                yield weight, behind


def _weights(node: fx.Node) -> list[fx.Node]:
    """Returns what a node may sum with: a layer's weight, the operands of a product."""
    if is_op(node, *_LAYERS):
        return [schema_args(node)["weight"]]
    return node.all_input_nodes if is_op(node, *_PRODUCTS) else []


def _behind(node: fx.Node) -> list[fx.Node]:
    """Returns a node, and all that it is computed from."""
    found = [node]
    for one in found:
        found += [source for source in one.all_input_nodes if source not in found]
    return found


def _in_place(node: fx.Node) -> bool:
    """Returns whether what a node gives has the numbers of its operands where they were, or is a statistic of them."""
    if node.op == "get_attr" or node.target is operator.getitem or is_op(node, *_STATISTICS, *_IN_PLACE):
        return True
    value = fake(node)
    summed = is_op(node, *_PRODUCTS) and value is not None and value.dim() < 2
    return summed or torch.Tag.pointwise in getattr(node.target, "tags", ())


def _standardised(graph: fx.Graph, model: nn.Module, state: State) -> Iterator[Computed]:
    """Yields the weights that a layer's forward standardises; each has the name of the one parameter of its shape."""
    seen: set[str] = set()
    for weight, behind in list(_with_statistics(graph)):
        if not all(map(_in_place, behind)) or not all(is_op(user, *_LAYERS) for user in weight.users):
            continue
        names = [str(node.target) for node in behind if node.op == "get_attr"]
        value = fake(weight)
        shape = tuple(value.shape) if value is not None else ()
        own = [name for name in names if name in state.parameters and tuple(state.tensors[name].shape) == shape]
        if len(own) == 1 and own[0] not in seen and set(names) <= state.canonical.keys():
            seen.add(own[0])
            by = type(model.get_submodule(layer_of(own[0]))).__name__
            yield Computed(own[0], shape, frozenset(names), by)


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
    with untouched(
        module, training=False
    ):  # a weight may step what it is made of in training, whenever it is looked at
        value = getattr(module, name, None)
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _fold(flat: Flat, state: State, computed: Computed) -> Folded | None:
    sources = {state.canonical[name] for name in computed.sources}
    begin = [node for node in flat.graph.find_nodes(op="get_attr") if node.target in sources]
    inner = _inner(flat.graph, begin)
    results = _results(inner, computed.shape)
    if not results or _leaks(begin, inner, results):
        return None
    values = evaluated(flat, [*begin, *inner])
    if values is None or not all(torch.equal(values[node], values[results[0]]) for node in results):
        return None
    learning = [node for node in results if values[node].requires_grad]
    tensor: Tensor = nn.Parameter(values[results[0]].detach().clone(), requires_grad=bool(learning))
    given = [values[node] for node in begin if node.target in state.parameters]
    cut = any(cuts(node, values) for node in inner)
    alike = all(trains_alike(values[node], given, cut=cut) for node in learning)
    flat.tensors[computed.name] = tensor
    held = flat.graph.find_nodes(op="get_attr")
    layer = layer_of(computed.name)
    with flat.graph.inserting_before(next(n for n in held if n in begin or layer_of(str(n.target)) == layer)):
        new = flat.graph.create_node("get_attr", computed.name, name=computed.name.replace(".", "_"))
    new.meta = {"val": results[0].meta["val"], "module": ""}
    for node in results:
        stopped = learning and node not in learning
        node.replace_all_uses_with(insert(node, aten.detach.default, (new,), node.meta["val"]) if stopped else new)
    for node in reversed([*begin, *inner]):
        if not node.users:
            flat.graph.erase_node(node)

    def unlike(name: str) -> tuple[bool, bool, str]:
        return state.tensors[name].shape != tensor.shape, name not in state.parameters, name

    return Folded(computed.name, tuple(sorted(sources, key=unlike)), computed.by, tensor, alike)


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

"""What eval mode hides: dropout that the model asks for only while it trains, and norms over the batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Set
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fxprune.capturing.normalize.edit import aten, is_op
from fxprune.capturing.observed import ATTENTION, DROPOUT, WEIGHTS, Calls

_NODES = {
    ATTENTION: (aten.scaled_dot_product_attention,),
    WEIGHTS: (aten.softmax, aten._softmax),
    DROPOUT: (aten.dropout,),
}


def restore_training(graph: fx.Graph, calls: Calls) -> list[str]:
    """Write the dropout probabilities of training into an eval-mode graph.

    The dropouts of a run in training mode are matched with the graph's nodes by module and order. Attention nodes get
    ``meta["dropout_p"]``, dropout nodes their probability, and attention weights that are only dropped in training get
    a dropout node.

    Returns:
        Notes on what could not be matched.
    """
    notes: list[str] = []
    for kind, seen in calls.items():
        nodes = _by_module(graph, _NODES[kind])
        for path, probabilities in seen.items():
            here = nodes.get(path, [])
            if len(here) == len(probabilities):
                for node, probability in zip(here, probabilities, strict=True):
                    _write(graph, node, kind, probability)
            elif any(probabilities):
                notes.append(
                    f"{path!r} calls {kind} {len(probabilities)} times in training and {len(here)} times in eval: "
                    "its dropout in training is not kept"
                )
    return notes


def _by_module(graph: fx.Graph, targets: Iterable[Any]) -> dict[str, list[fx.Node]]:
    found: dict[str, list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        if is_op(node, *targets):
            found[node.meta.get("module", "")].append(node)
    return found


def _write(graph: fx.Graph, node: fx.Node, kind: str, probability: float) -> None:
    if kind == ATTENTION:
        node.meta["dropout_p"] = probability
    elif kind == DROPOUT:
        node.args = (node.args[0], probability, *node.args[2:])
    elif probability:
        with graph.inserting_after(node):
            new = graph.call_function(aten.dropout.default, (node, probability, False))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new, lambda user: user is not new)


def lost_norms(graph: fx.Graph, model: nn.Module, over_batch: Set[str]) -> list[str]:
    """Return what the norms do in training that cannot be modules of the result: they are over the batch there alone.

    Args:
        graph: The graph in evaluation mode.
        model: Whose norms they are.
        over_batch: Names of the modules that call such norms.
    """
    found = set()
    for path, nodes in _by_module(graph, (aten.batch_norm, aten.instance_norm)).items():
        owner = model.get_submodule(path)
        if path in over_batch and any(not _is_layer(node, owner, path) for node in nodes):
            found.add(path)
    names = ", ".join(map(repr, sorted(found)))
    told = f"norms of {names} are over the batch in training mode: those of the result keep to the statistics that they hold"
    return [told] if found else []


def _is_layer(node: fx.Node, owner: nn.Module, path: str) -> bool:
    """Say whether a norm is one of torch's classes, over tensors of its own."""
    operands = [x for x in node.all_input_nodes if x is not node.args[0]]
    own = all(x.op == "get_attr" and str(x.target).rpartition(".")[0] == path for x in operands)
    return own and isinstance(owner, (_BatchNorm, _InstanceNorm))

"""Factors: of layers whose outputs are multiplied one is enough to name the product, for nothing is left of it without that one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from heapq import heappop, heappush

import torch
from torch import Tensor, fx

from fxprune._base.names import layer_of
from fxprune.algebra.axes import is_labelled
from fxprune.capturing.shapes import TensorInfo
from fxprune.coupling.coupling import Coupling
from fxprune.ops.registry import bind, is_kind, rule_at

#: What may stand for a value: neither zero, nor where activations have a kink or a zero.
_ANYTHING = (1.7, -1.7, 0.3, -0.3)


def carry(coupling: Coupling, chosen: Collection[str], makers: Collection[str]) -> bool:
    """Returns whether nothing is left of what layers make together, once what some of them make is zero.

    That is so of a gate and what it lets through, where they are multiplied elementwise, and not of the terms of a sum; products in
    attention, in ``einsum`` and ``glu`` of a ``cat`` are not looked into. What is added to channels with them, by a bias
    or a batch norm, goes with them.

    Args:
        coupling: of the captured graph.
        chosen: names of layers.
        makers: names of all layers that make the channels.
    """
    ours = {n for n in coupling.values if n.op == "get_attr" and layer_of(str(n.target)) in chosen}
    zeros, others = _zeros(coupling, ours), set(makers) - set(chosen)
    mixing = {c.node for c in coupling.contractions if is_labelled(c.axis)} | set(coupling.statistics)
    todo = [n for n in coupling.values if n.op == "get_attr" and layer_of(str(n.target)) in others]
    seen, made = set(todo), set(todo)
    while todo:
        node = todo.pop()
        for user in node.users:
            mixes = rule_at(user) is None or (user in mixing and not _passes(coupling, user))
            if user.op == "output" or (mixes and node not in made):
                return False
            if user not in zeros and user not in seen:
                seen.add(user)
                todo.append(user)
    return bool(ours)


def _zeros(coupling: Coupling, tensors: Collection[fx.Node]) -> set[fx.Node]:
    """Returns the values that are zero where some tensors are, up to the layers that read them."""
    place = {node: i for i, node in enumerate(coupling.captured.module.graph.nodes)}
    zeros, todo = set(tensors), list[tuple[int, fx.Node]]()
    for user in {user for node in tensors for user in node.users}:
        heappush(todo, (place[user], user))
    while todo:
        _, node = heappop(todo)
        if node not in zeros and _is_zero(coupling, node, zeros):
            zeros.add(node)
            for user in node.users:
                heappush(todo, (place[user], user))
    return zeros


def _passes(coupling: Coupling, node: fx.Node) -> bool:
    """Returns whether a node is a depthwise convolution."""
    if not is_kind(node, "conv"):
        return False
    a = bind(node)
    return bool(a.groups > 1 and coupling.captured.info[a.weight].shape[1] == 1)


def _is_zero(coupling: Coupling, node: fx.Node, zeros: Collection[fx.Node]) -> bool:
    rule = rule_at(node)
    if rule is None:
        return False
    operands = vars(bind(node))
    first = next(iter(operands.values()))
    if rule.kind in ("linear", "conv", "conv_transpose", "embedding"):
        own = [operands[name] for name in ("weight", "bias") if operands.get(name) is not None]
        return all(x in zeros for x in own) or (first in zeros and _passes(coupling, node))
    if any(operands[name] in zeros for name, power in rule.powers.items() if power == 1.0):
        return True
    if rule.moves is not None or rule.conducts or rule.kind in ("batch_norm", "pool", "reshape"):
        return first in zeros
    return rule.kind in ("elementwise", "addition") and _gives_zero(coupling, node, zeros)


def _gives_zero(coupling: Coupling, node: fx.Node, zeros: Collection[fx.Node]) -> bool:
    """Returns whether an elementwise op gives zero, tried with zeros for what is zero and with anything for all else."""
    sources = node.all_input_nodes
    if not all(isinstance(coupling.captured.info.get(source), TensorInfo) for source in sources):
        return False
    return all(_tried(node, {s: torch.full((1,), 0.0 if s in zeros else x) for s in sources}) for x in _ANYTHING)


def _tried(node: fx.Node, values: Mapping[fx.Node, Tensor]) -> bool:
    args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
    assert callable(node.target)
    with suppress(RuntimeError, TypeError, IndexError, ValueError):  # an op of integers, or that wants more dimensions
        found = node.target(*args, **kwargs)
        return isinstance(found, Tensor) and not found.any()
    return False

"""Branches: what the layers of a residual branch give, beside the stream that it is added to.

Where all that reads a stream normalises it, as in a transformer, an error counts as a share of the stream: the first layers, which
write to what is still small, and the last ones, which write much, cost more than those in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.ops.registry import bind, is_kind, rule_at
from fxprune.ops.tracer import Contraction
from fxprune.scoring.engine.logits import softmax_behind, spread
from fxprune.twin.interpreter import Run


@dataclass(frozen=True, slots=True, eq=False)
class Sum:
    """An addition whose result norms read: of a branch to a stream.

    Attributes:
        node: the addition.
        branch: the operand that is the branch.
        dims: what the norms run over.
    """

    node: fx.Node
    branch: fx.Node
    dims: tuple[int, ...]


def sums_behind(coupling: Coupling, readers: Iterable[Contraction]) -> dict[fx.Node, Sum]:
    """Returns for the op of each contraction the sum that its branch ends in, of those that do."""
    sums = {
        node: dims
        for node in coupling.captured.module.graph.nodes
        if is_kind(node, "addition") and len(node.all_input_nodes) == 2 and (dims := _normalised_over(node))
    }
    if not sums:
        return {}
    place = {node: i for i, node in enumerate(coupling.captured.module.graph.nodes)}
    found = {}
    for node in {c.node for c in readers}:
        seen, todo, ends = {node}, [node], set[fx.Node]()
        while todo:
            for user in todo.pop().users:
                if user in sums:
                    ends.add(user)
                elif user not in seen:
                    seen.add(user)
                    todo.append(user)
        if ends:
            end = min(ends, key=place.__getitem__)
            branch = [source for source in end.all_input_nodes if source in seen]
            if len(branch) == 1:
                found[node] = Sum(end, branch[0], sums[end])
    return found


def _normalised_over(node: fx.Node) -> tuple[int, ...]:
    """Returns the dimensions of a value that a norm runs over, one written out among them; none if no norm reads it."""
    todo = [(node, False)]
    while todo:
        source, squared = todo.pop()
        for user in source.users:
            rule = rule_at(user)
            if rule is None:
                continue
            a = vars(bind(user))
            if rule.kind == "norm":
                return tuple(range(-len(a["normalized_shape"]), 0)) if "normalized_shape" in a else (1,)
            if a.get("dim") and (rule.zeros is not None or (squared and rule.factor is not None)):
                return tuple(a["dim"]) if isinstance(a["dim"], Sequence) else (a["dim"],)
            if set(user.all_input_nodes) == {source} and (rule.conducts or rule.powers):
                todo.append((user, squared or any(power != 1.0 for power in rule.powers.values())))
    return ()


def share(end: Sum, values: Mapping[fx.Node, Any]) -> float:
    """Returns the square of what a branch gives as a share of that of the sum, at most 1: the median over places.

    Args:
        end: the sum.
        values: those that are alive there, ``[...]`` each.
    """
    whole = values[end.node]
    whole, part = (each.float().square().sum(end.dims) for each in (whole, values[end.branch].expand_as(whole)))
    return min(float((part / whole.clamp_min(torch.finfo(torch.float32).tiny)).median()), 1.0)


@torch.no_grad()
def weights(coupling: Coupling, readers: Sequence[Contraction], inputs: Sequence[Tensor]) -> dict[fx.Node, float]:
    """Returns how much a relative error of what readers of units give counts, by op; 1 if nothing is known.

    Args:
        coupling: of the captured graph.
        readers: contractions.
        inputs: flat, ``[...]`` as the graph takes them.
    """
    ends = sums_behind(coupling, readers)
    products = {c.node: at for c in readers if c.other is not None and (at := softmax_behind(c.node)) is not None}
    branches: dict[fx.Node, dict[fx.Node, Sum]] = {}
    for end in ends.values():  # one for all that read in a branch
        branches.setdefault(end.node, {})[end.branch] = end
    shares: dict[tuple[fx.Node, fx.Node], float] = {}
    spreads, softmaxes = dict[fx.Node, float](), set(products.values())
    for node, values in Run(Selection.nothing(coupling)).steps(inputs):
        shares |= {(node, branch): share(end, values) for branch, end in branches.get(node, {}).items()}
        if node in softmaxes:
            spreads[node] = spread(node, values)
    found = {node: shares[end.node, end.branch] for node, end in ends.items()}
    return found | {node: found.get(node, 1.0) * spreads[at] for node, at in products.items()}

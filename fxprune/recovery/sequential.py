"""Sequential covariance with residual drift: layer after layer, from what the pruned model really feeds it.

For each consumer in topological order the kept weights are regressed on the inputs that the already pruned and
recovered model gives, towards the dense model's output plus what the skip connection beside it has lost so far:
``T = y_dense + (skip_dense - skip_pruned) / s`` with ``s = gamma / sqrt(running_var + eps)`` of the batch norm in
between, with a ridge towards the old weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.ops.registry import bind, conducts, is_kind
from fxprune.recovery.consumers import Consumer
from fxprune.recovery.moments import Moments, ridge_solve
from fxprune.recovery.protocol import RecoveryContext
from fxprune.recovery.replacements import Replacements
from fxprune.twin.interpreter import Run

#: A batch norm scale below this share of the layer's largest cannot pass a correction on.
_TINY = 1e-2


@dataclass(frozen=True, slots=True, eq=False)
class Drift:
    """The skip connection that a layer's output is added to, the batch norm in between, and the sum."""

    skip: fx.Node
    norm: fx.Node | None
    total: fx.Node


def find_drift(node: fx.Node) -> Drift | None:
    """Returns the other operand of the addition that a layer's output goes into, if that is all it does."""
    norm = None
    while len(node.users) == 1:
        user = next(iter(node.users))
        if is_kind(user, "addition"):
            a = bind(user)
            other = a.other if a.self is node else a.self
            if a.alpha != 1 or not isinstance(other, fx.Node) or other is node:
                return None
            return Drift(other, norm, user)
        if is_kind(user, "batch_norm") and norm is None and user.args[0] is node and not bind(user).training:
            norm = user
        elif not conducts(user):
            return None
        node = user
    return None


def sequential(context: RecoveryContext) -> dict[str, Tensor]:
    """Returns full-size replacements of the consumers' weights, biases and running means.

    All batches advance together, node by node, if the values that are alive fit into the memory limit; otherwise every
    consumer has its own pass from the start.
    """
    by_node = {consumer.node: consumer for consumer in context.consumers}
    drifts = {node: drift for node in by_node if (drift := find_drift(node)) is not None}
    order = _order(context.selection.coupling, drifts)
    march = _March(context, order, drifts)
    batches = list(context.inputs) if march.fits() else None
    if batches is not None:
        march.together(batches, by_node)
    else:
        for node in order:
            if node in by_node:
                march.alone(by_node[node])
    return march.changed.tensors


def _order(coupling: Coupling, drifts: dict[fx.Node, Drift]) -> list[fx.Node]:
    """Returns the graph's nodes with every skip before the layer it is added to, where that is possible."""
    import networkx as nx

    nodes = list(coupling.captured.module.graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    graph: nx.DiGraph[fx.Node] = nx.DiGraph()
    graph.add_nodes_from(nodes)
    graph.add_edges_from((source, node) for node in nodes for source in node.all_input_nodes)
    for node, drift in list(drifts.items()):
        if place[drift.skip] < place[node]:
            continue
        if nx.has_path(graph, node, drift.skip):
            del drifts[node]
        else:
            graph.add_edge(drift.skip, node)
    return list(nx.lexicographical_topological_sort(graph, key=place.__getitem__))


class _March:
    """Dense model and masked twin side by side."""

    def __init__(self, context: RecoveryContext, order: Sequence[fx.Node], drifts: dict[fx.Node, Drift]) -> None:
        self.context, self.order, self.drifts = context, order, drifts
        self.changed = Replacements(context.selection.coupling)
        self.dense = Run(Selection.nothing(context.selection.coupling))
        self.pruned = Run(context.selection.with_tensors(self.changed.tensors))
        self.last: dict[fx.Node, list[fx.Node]] = {}
        seen: set[fx.Node] = set()
        for node in reversed(order):
            needed = [*node.all_input_nodes, *([drifts[node].skip] if node in drifts else [])]
            for source in dict.fromkeys(needed):
                if source not in seen:
                    seen.add(source)
                    self.last.setdefault(node, []).append(source)

    def fits(self) -> bool:
        """Returns whether all batches' live values stay within half the limit, judged by the first batch."""
        sizes: dict[fx.Node, int] = {}
        peak = count = 0
        for batch in self.context.inputs:
            count += 1
            if count > 1:
                continue
            values: dict[fx.Node, Any] = {}
            feed = iter(batch)
            for node in self.order:
                values[node] = self.dense.step(node, values, feed)
                if node.op != "get_attr" and isinstance(values[node], Tensor):
                    sizes[node] = values[node].numel() * values[node].element_size()
                peak = max(peak, sum(sizes.values()))
                for source in self.last.get(node, ()):
                    values.pop(source)
                    sizes.pop(source, None)
        return 2 * count * peak <= self.context.memory_limit // 2

    def together(self, batches: Sequence[Sequence[Tensor]], consumers: dict[fx.Node, Consumer]) -> None:
        """Advances all batches node by node."""
        dense: list[dict[fx.Node, Any]] = [{} for _ in batches]
        pruned: list[dict[fx.Node, Any]] = [{} for _ in batches]
        feeds = [(iter(batch), iter(batch)) for batch in batches]
        for node in self.order:
            for i, (dense_feed, _) in enumerate(feeds):
                dense[i][node] = self.dense.step(node, dense[i], dense_feed)
            if node in consumers:
                moments = Moments()
                for i, (d, p) in enumerate(zip(dense, pruned, strict=True)):
                    self._observe(consumers[node], moments, d, p, i)
                self._fit(consumers[node], moments)
                self._refresh(consumers[node], pruned)
            for i, (_, pruned_feed) in enumerate(feeds):
                pruned[i][node] = self.pruned.step(node, pruned[i], pruned_feed)
            for source in self.last.get(node, ()):
                for values in (*dense, *pruned):
                    del values[source]

    def _refresh(self, consumer: Consumer, pruned: Sequence[dict[fx.Node, Any]]) -> None:
        """Hands the consumer's new weight and shift to the runs that hold the old ones."""
        names = {consumer.weight} | ({consumer.home.tensor} if consumer.home is not None else set())
        for node in self.order:
            if node.op == "get_attr" and node.target in names:
                for values in pruned:
                    if node in values:
                        values[node] = self.pruned.step(node, values, iter(()))

    def alone(self, consumer: Consumer) -> None:
        """Runs every batch from the start up to one consumer."""
        moments = Moments()
        for number, batch in enumerate(self.context.inputs):
            dense: dict[fx.Node, Any] = {}
            pruned: dict[fx.Node, Any] = {}
            feeds = iter(batch), iter(batch)
            for node in self.order:
                dense[node] = self.dense.step(node, dense, feeds[0])
                if node is consumer.node:
                    self._observe(consumer, moments, dense, pruned, number)
                    break
                pruned[node] = self.pruned.step(node, pruned, feeds[1])
                for source in self.last.get(node, ()):
                    del dense[source], pruned[source]
        self._fit(consumer, moments)

    def _observe(
        self, consumer: Consumer, moments: Moments, dense: dict[fx.Node, Any], pruned: dict[fx.Node, Any], number: int
    ) -> None:
        """Adds one batch: the pruned model's columns against what its output lacks."""
        node = consumer.node
        target = dense[node] - self.pruned.step(node, pruned, iter(()))
        if node in self.drifts:
            drift = self.drifts[node]
            lost = dense[drift.skip] - pruned[drift.skip]
            if lost.shape == target.shape:
                target = target + lost * self._inverse_scale(drift.norm, target)
        rows = consumer.choose(target.shape, self.context.memory_limit, number)
        moments.add(consumer.columns(pruned[consumer.source], rows), consumer.outputs(target, rows))

    def _inverse_scale(self, norm: fx.Node | None, like: Tensor) -> Tensor:
        if norm is None:
            return torch.ones((), dtype=like.dtype, device=like.device)
        a = bind(norm)
        var = self.changed.value(str(a.running_var.target))
        scale = 1 / torch.sqrt(var + a.eps)
        if a.weight is not None:
            scale = scale * self.changed.value(str(a.weight.target))
        inverse = torch.where(scale.abs() > _TINY * scale.abs().max(), 1 / scale, 0.0)
        return inverse.reshape(1, -1, *[1] * (like.dim() - 2))

    def _fit(self, consumer: Consumer, moments: Moments) -> None:
        if consumer.home is None:
            moments.raw()
        shape = (consumer.groups, consumer.rows.shape[1], consumer.kept.shape[1])
        update = torch.zeros(shape, dtype=torch.float64, device=moments.xx.device)
        shift = torch.zeros(shape[:2], dtype=torch.float64, device=moments.xx.device)
        masks = torch.from_numpy(consumer.kept).to(update.device)
        for g in range(consumer.groups):
            kept = masks[g]
            gain = ridge_solve(moments.xx[g][kept][:, kept], moments.tx[g][:, kept], self.context.ridge)
            update[g][:, kept] = gain
            shift[g] = moments.mean_t[g] - gain @ moments.mean_x[g][kept]
        self.changed.add(consumer, update, shift)

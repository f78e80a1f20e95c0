"""Sequential covariance with residual drift: layer after layer, from what the pruned model really feeds it.

For each consumer in topological order the kept weights are regressed on the inputs that the already pruned and
recovered model gives, towards the dense model's output plus what the skip connection beside it has lost so far:
``T = y_dense + (skip_dense - skip_pruned) / s`` with ``s = gamma / sqrt(running_var + eps)`` of the batch norm in
between. Layers that lose nothing but read what has drifted are fitted as well, up to the last one that loses columns (as GPTAQ
does in quantisation, arXiv 2504.02692): ResNet-56 at 0.3 of its MACs 85.98 % instead of 84.54. So are depthwise convolutions, filter by
filter: none makes up for another channel, but what each reads has drifted. The gates of recurrent layers, whose
sums are no values of the graph, come first, from the dense model's statistics.

All layers begin with what `fxprune.recovery.compensate` gives them, and the ridge is towards that. Of a few ridges each layer takes
the one that is best on a quarter of the samples (every fourth batch), which the others did not see; if none is, it stays as it is: where data are few, or
what drifts is noise, a regression on it is worse than nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from fxprune._base.ranks import gathered, own
from fxprune.coupling.coupling import Coupling
from fxprune.ops.registry import bind, conducts, is_kind
from fxprune.recovery.compensate import fit, make_up
from fxprune.recovery.consumers import Consumer, Draw, Replacements, find_consumers
from fxprune.recovery.gains import Fit, Gain, Gains
from fxprune.recovery.measuring import split, squared_at_once
from fxprune.recovery.moments import Moments
from fxprune.recovery.protocol import Recovered, RecoveryContext
from fxprune.recovery.ridges import best_ridge
from fxprune.results.tables import few
from fxprune.twin.interpreter import Run
from fxprune.twin.waiting import Waiting, waiting

#: A batch norm scale below this share of the layer's largest cannot pass a correction on.
_TINY = 1e-2
#: What an output lacks counts from so many times its rounding on.
_ROUNDING = 100


@dataclass(frozen=True, slots=True, eq=False)
class Drift:
    """The skip connection that a layer's output is added to, the batch norm in between, and the sum."""

    skip: fx.Node
    norm: fx.Node | None
    total: fx.Node


def find_drift(node: fx.Node) -> Drift | None:
    """Returns the other operand of the addition that a layer's output goes into, if that is all it does."""
    norm, whole = None, True
    while len(node.users) == 1:
        user = next(iter(node.users))
        if is_kind(user, "addition"):
            a = bind(user)
            other = a.other if a.self is node else a.self
            if isinstance(other, fx.Node) and other.op == "get_attr" and (a.alpha == 1 or a.self is node):  # a bias
                node = user
                continue
            if a.alpha != 1 or not isinstance(other, fx.Node) or other is node:
                return None
            return Drift(other, norm, user)
        if is_kind(user, "batch_norm"):
            if norm is not None or not whole or user.args[0] is not node or not _scales(user):
                return None
            norm = user
        elif is_kind(user, "reshape"):
            whole = False  # a norm behind it has its channels elsewhere
        elif not conducts(user):
            return None
        node = user
    return None


def _scales(norm: fx.Node) -> bool:
    """Returns whether a batch norm is a scale for each channel, of tensors that the model holds."""
    a = bind(norm)
    held = (a.running_var, *(() if a.weight is None else (a.weight,)))
    return not a.training and all(isinstance(x, fx.Node) and x.op == "get_attr" for x in held)


def sequential(context: RecoveryContext) -> Recovered:
    """Returns full-size replacements of the consumers' weights, biases and running means, and which layers stay as covariance left them.

    All batches advance together, from one of these layers to the next; what they hold meanwhile stays in memory within half the limit, and
    waits in files beyond that.
    """
    by_node = {consumer.node: consumer for consumer in _layers(context)}
    drifts = {node: drift for node in by_node if (drift := find_drift(node)) is not None}
    march = _March(context, by_node, _order(context.selection.coupling, drifts), drifts)
    march.go()
    return Recovered(march.changed.tensors, (*march.told, *_kept_lines(march.changed.told)))


def _layers(context: RecoveryContext) -> list[Consumer]:
    """Returns the layers that lose columns, and the others before the last of them, in graph order.

    Without those that others' recovery has changed on purpose (`fxprune.recovery.cores`): they are not to give what they gave.
    """
    cut, done = {consumer.node: consumer for consumer in context.consumers}, context.selection.tensors
    every = [
        cut.get(consumer.node, consumer)
        for consumer in find_consumers(context.selection, every=True, depthwise=True)[0]
    ]
    every = [consumer for consumer in every if consumer.node in cut or consumer.weight not in done]
    return every[: max((i + 1 for i, consumer in enumerate(every) if consumer.node in cut), default=0)]


def _kept_lines(layers: Sequence[str]) -> tuple[str, ...]:
    """Returns a line that names the layers that stay as they began, if there are any."""
    if not layers:
        return ()
    return (
        f"{few(layers, 6)}: as covariance left them: on samples held out from the fit nothing was better, or there were too few to hold any out",
    )


def _order(coupling: Coupling, drifts: dict[fx.Node, Drift]) -> list[fx.Node]:
    """Returns the graph's nodes with every skip before the layer it is added to; drops the drifts where that cannot be.

    Skips that come first anyway are edges too, or what is moved for the sake of another would take them along.
    """
    import networkx as nx

    nodes = list(coupling.captured.module.graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    graph: nx.DiGraph[fx.Node] = nx.DiGraph()
    graph.add_nodes_from(nodes)
    graph.add_edges_from((source, node) for node in nodes for source in node.all_input_nodes)
    graph.add_edges_from((drift.skip, node) for node, drift in drifts.items() if place[drift.skip] < place[node])
    for node, drift in list(drifts.items()):
        if nx.has_path(graph, node, drift.skip):
            del drifts[node]
        else:
            graph.add_edge(drift.skip, node)
    return list(nx.lexicographical_topological_sort(graph, key=place.__getitem__))


def _moments_for(consumer: Consumer) -> Moments:
    """Returns room for a layer's moments, and for those that are held out."""
    moments = Moments(consumer.kept.shape[1])
    moments.held = Moments(moments.most)
    return moments


def _value(run: Run, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """Returns a value that is alive; a parameter or buffer as it stands now."""
    return run.step(node, {}, iter(())) if node.op == "get_attr" else values[node]


def _step(run: Run, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """Returns the value of a node from what is alive."""
    return run.step(node, {source: _value(run, source, values) for source in node.all_input_nodes}, iter(()))


#: A batch's values that are alive, in the dense model and in the pruned one.
State: TypeAlias = tuple[dict[fx.Node, Any], dict[fx.Node, Any]]


class _March:
    """Dense model and masked twin side by side."""

    def __init__(
        self,
        context: RecoveryContext,
        consumers: dict[fx.Node, Consumer],
        order: Sequence[fx.Node],
        drifts: dict[fx.Node, Drift],
    ) -> None:
        self.context, self.consumers, self.drifts = context, consumers, drifts
        self.cut = {consumer.node for consumer in context.consumers}
        self.batches = sum(1 for _ in context.inputs)
        self.changed = Replacements(context.selection.coupling, context.start, context.shelf("once"))
        begun = dict(self.changed.tensors)
        make_up(context, self.changed, covariance=True, consumers=(*context.gates, *context.consumers))
        self.told, self.changed.told = self.changed.told, []
        self.changed.shelf = context.shelf("sequential")
        for home in (c.home for c in context.consumers if c.home is not None and c.home.behind is not None):
            # it takes no part in the layer's own output: the shift is found anew with the rest
            self.changed.tensors.pop(home.tensor, None)
            self.changed.tensors |= {home.tensor: begun[home.tensor]} if home.tensor in begun else {}
        self.dense = Run(context.dense)
        self.pruned = Run(context.selection.with_tensors(self.changed.tensors))
        self.gains = Gains(context.selection, self.changed)
        self._lacking, self.numbers = set[fx.Node](), list[int]()
        fitted = set(consumers) | set(self.gains.of)
        self.order = order = order[: max((i + 1 for i, node in enumerate(order) if node in fitted), default=0)]
        final = {source: node for node in order for source in node.all_input_nodes}
        place = {node: i for i, node in enumerate(order)}
        for node, drift in drifts.items():
            final[drift.skip] = max(
                node, final.get(drift.skip, node), key=place.__getitem__
            )  # the sum may lie beyond the end
        self._read = frozenset(final)
        self.last: dict[fx.Node, list[fx.Node]] = {}
        for source, node in final.items():
            self.last.setdefault(node, []).append(source)

    def go(self) -> None:
        """Advances all batches to one layer or gain after another, and fits it."""
        with waiting(self.context.memory_limit // 2) as held:
            for number, batch in own(self.context.inputs):
                held.put(number, self._begun(batch))
                self.numbers.append(number)
            begin = 0
            for end, node in enumerate(self.order):
                if node in self.consumers or node in self.gains.of:
                    states = self._advanced(held, self.order[begin:end], node)
                    begin = end
                    if node in self.consumers:
                        self._regress(self.consumers[node], states)
                    else:
                        self._scale(self.gains.of[node], states)

    def _begun(self, batch: Sequence[Tensor]) -> State:
        """Returns the inputs that are read, as the values that there are in the beginning."""
        nodes = [node for node in self.dense.graph.nodes if node.op == "placeholder"]
        feed = iter(batch)
        values = {node: self.dense.step(node, {}, feed) for node in nodes}
        read = {node: value for node, value in values.items() if node in self._read}
        return dict(read), read

    def _advanced(self, held: Waiting, way: Sequence[fx.Node], node: fx.Node) -> Iterator[tuple[int, *State]]:
        """Yields each batch's number and values, once it has gone a way, with the dense model's value of the node behind it."""
        for number in self.numbers:
            dense, pruned = held.take(number)
            for each in way:
                if each.op not in ("get_attr", "placeholder") and each in self._read:
                    for run, values in ((self.dense, dense), (self.pruned, pruned)):
                        if each not in values:
                            values[each] = _step(run, each, values)
                for source in self.last.get(each, ()):
                    dense.pop(source, None), pruned.pop(source, None)
            dense[node] = _step(self.dense, node, dense)
            yield number, dense, pruned
            held.put(number, (dense, pruned))

    def _regress(self, consumer: Consumer, states: Iterable[tuple[int, *State]]) -> None:
        """Fits a layer, unless an earlier run has."""
        if self.changed.made(consumer):
            for _ in states:
                pass
            return
        moments = _moments_for(consumer)
        for number, dense, pruned in states:
            self._observe(consumer, moments, dense, pruned, number)
        moments.share(True)
        if any(gathered(consumer.node in self._lacking)):
            self._lacking.add(consumer.node)
        self._fit(consumer, moments)

    def _scale(self, gain: Gain, states: Iterable[tuple[int, *State]]) -> None:
        """Fits a gain."""
        found = Fit()
        for _, dense, pruned in states:
            self.gains.observe(found, gain, _step(self.pruned, gain.node, pruned), dense[gain.node])
        self.gains.apply(found, gain)

    def _observe(
        self, consumer: Consumer, moments: Moments, dense: dict[fx.Node, Any], pruned: dict[fx.Node, Any], number: int
    ) -> None:
        """Adds one batch, to fit and to judge by: the pruned model's columns against what its output lacks."""
        node = consumer.node
        target = dense[node] - _step(self.pruned, node, pruned)
        if node in self.drifts:
            drift = self.drifts[node]
            there, here = _value(self.dense, drift.skip, dense), _value(self.pruned, drift.skip, pruned)
            lost = there.to(target.dtype) - here.to(target.dtype)  # a mask may be flags
            lost = torch.where(lost.isfinite(), lost, 0.0)  # or minus infinity
            if consumer.affine.last and lost.shape[-1:] == target.shape[-1:] and lost.numel() == target.numel():
                lost = lost.reshape(target.shape)  # tokens may have been told apart in between
            if lost.shape == target.shape:
                target = target + lost * self._inverse_scale(drift.norm, target)
        if target.abs().max() > _ROUNDING * torch.finfo(target.dtype).eps * dense[node].abs().max():
            self._lacking.add(node)
        elif node not in self.cut:
            return
        read = _value(self.pruned, consumer.source, pruned)
        limit, draw = self.context.memory_limit, Draw(number, self.batches)
        if squared_at_once(consumer, moments, read, target, limit, draw, targets=True):
            return
        rows = consumer.choose(target.shape, limit, draw)
        columns, lacking = consumer.columns(read, rows), consumer.outputs(target, rows)
        cut = split(len(columns), number, self.batches)
        moments.add(columns[:cut], lacking[:cut])
        if moments.held is not None:
            moments.held.add(columns[cut:], lacking[cut:])

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
        blocks = [(slice(None), moments)]
        if not moments.count and consumer.node not in self.cut:
            return
        ridge = best_ridge(consumer, blocks, self.context.ridge)
        stays = ridge is None and consumer.node in self._lacking & self.cut
        moments.whole()
        fit(self.changed, consumer, blocks, ridge, consumer.weight if stays else "")

"""Flows: where a layer's outputs stand in later values, as long as they are only moved about, scaled alike, or mixed over places.

The number of each output goes through the graph in the place of its value. Where two such values are multiplied and
summed over channels (queries and keys), or one is read by a linear layer (values, behind the attention), each head may give its
channels in any basis: the layer on the other side takes it up.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.coupling.selection import Selection
from fxprune.ops.registry import bind, is_kind, rule_at
from fxprune.ops.tracer import Contraction
from fxprune.recovery.consumers import Consumer
from fxprune.recovery.products import hot, operands_of, pairs_of, repeated
from fxprune.recovery.spreads import Maker, Spread, makers, spread_of
from fxprune.twin.interpreter import Run


@dataclass(frozen=True, slots=True, eq=False)
class Meeting:
    """A value whose channels are summed in an op, sample by sample.

    Attributes:
        node: the op.
        maker: the layer that makes the value.
        heads: the outputs of the layer that each head sums over, in order, ``[heads, channels]``.
        columns: where the op is a linear layer, its columns of each head, ``[heads, channels]``.
        values: for each head what it sums over in this batch, ``[samples, channels]``.
    """

    node: fx.Node
    maker: Maker
    heads: Tensor
    values: Sequence[Tensor]
    columns: Tensor | None = None

    def bare(self) -> Meeting:
        """Returns it without the values."""
        return replace(self, values=())


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """A sum over channels of products of two values, such as queries and keys.

    Attributes:
        sides: both operands.
        pairs: which heads of them meet, ``[pairs, 2]``; None once they are known.
    """

    sides: tuple[Meeting, Meeting]
    pairs: Tensor | None

    def bare(self) -> Product:
        """Returns it without the values."""
        return Product((self.sides[0].bare(), self.sides[1].bare()), self.pairs)


class Flows:
    """Follows the outputs of layers through one batch after another.

    Args:
        selection: what goes.
        consumers: the linear layers that lose columns.
        widest: channels of a head, at most, whose second moments fit into memory.
    """

    def __init__(self, selection: Selection, consumers: Sequence[Consumer], widest: int) -> None:
        self._widest, self._readings = widest, dict[fx.Node, Meeting]()
        self.makers, self._run = makers(selection), Run(Selection.nothing(selection.coupling))
        self._consumers = {c.node: c for c in consumers}
        self._sums: dict[fx.Node, list[Contraction]] = {}
        for c in selection.coupling.contractions:
            if c.weight is None:
                self._sums.setdefault(c.node, []).append(c)
        self._changed = selection.slicer.changed
        #: How often each output is summed over, and how often it is read in another way.
        self.uses = {m: torch.zeros(m.outputs, dtype=torch.int64) for m in self.makers.values()}
        self.others = {m: uses.clone() for m, uses in self.uses.items()}
        self._counted = False

    def through(self, batch: Sequence[Tensor], known: Collection[fx.Node] | None = None) -> Iterator[Product | Meeting]:
        """Yields every product and every reading in a batch, front to back.

        Args:
            batch: flat inputs, ``[samples, ...]``.
            known: where they are; None in the first batch, which tells how outputs are used.
        """
        spreads: dict[fx.Node, Spread] = {}
        waiting = None if known is None else set(known)
        self._parts: dict[fx.Node, list[Spread]] = {}
        for node, values in self._run.steps(batch):
            read = any(source in spreads for source in node.all_input_nodes)
            if node.target is operator.getitem and (parts := self._parts.get(node.all_input_nodes[0])) is not None:
                spreads[node] = parts[int(str(node.args[1]))]
            elif read and not isinstance(values[node], int):  # a size is no use of what is in it
                for found in self._step(node, values, spreads):
                    if known is None or node in known:
                        yield found
            if self._counted and node in self._readings:
                yield _again(self._consumers[node], values, self._readings[node])
            if waiting is not None:
                waiting.discard(node)
                if not waiting:
                    break
            if node in self.makers:
                spreads[node] = spread_of(self.makers[node], values[node])
            for source in self._run.last.get(node, ()):
                spreads.pop(source, None)
        self._counted = True

    def _step(
        self, node: fx.Node, values: Mapping[fx.Node, Any], spreads: dict[fx.Node, Spread]
    ) -> Iterator[Product | Meeting]:
        """Goes through one node that reads what is followed."""
        taken: set[fx.Node] = set()
        if node in self._readings:
            return  # what it reads is known
        if node in self._consumers and (meeting := self._reading(node, values, spreads)) is not None:
            taken.add(self._count(meeting, self._consumers[node].source))
            self._readings[node] = meeting.bare()
            yield meeting
        elif (parts := self._split(node, values, spreads)) is not None:
            taken.add(parts[0])
            self._parts[node] = parts[1]
        elif (moved := self._moved(node, values, spreads)) is not None:
            taken.add(moved[0])
            spreads[node] = moved[1]
        else:
            for contraction in self._sums.get(node, ()):
                found = self._product(contraction, values, spreads)
                if found is not None:
                    for side, source in zip(found.sides, operands_of(contraction), strict=True):
                        taken.add(self._count(side, source))
                    yield found
            mixture = None if self._counted else self._mixed(node, values, spreads)
            if mixture is not None:
                taken.add(mixture[0])
                spreads[node] = mixture[1]
        self._read(node, {n: s for n, s in spreads.items() if n not in taken})

    def _read(self, node: fx.Node, spreads: Mapping[fx.Node, Spread]) -> None:
        """Notes outputs that a node does with what nobody knows."""
        for source in node.all_input_nodes if not self._counted else ():
            if source in spreads:
                self.others[spreads[source].maker][spreads[source].outputs()] += 1

    def _count(self, meeting: Meeting, source: fx.Node) -> fx.Node:
        if not self._counted:
            self.uses[meeting.maker][meeting.heads.unique().cpu()] += 1
        return source

    def _reading(
        self, node: fx.Node, values: Mapping[fx.Node, Any], spreads: Mapping[fx.Node, Spread]
    ) -> Meeting | None:
        """Returns what a linear layer reads of another, if it is that alone and no wider than memory allows."""
        found = _reading(self._consumers[node], values, spreads)
        return None if found is None or found.heads.shape[1] > self._widest else found

    def _split(
        self, node: fx.Node, values: Mapping[fx.Node, Any], spreads: Mapping[fx.Node, Spread]
    ) -> tuple[fx.Node, list[Spread]] | None:
        """Returns what a node cuts into parts, and their spreads."""
        rule, followed = rule_at(node), [n for n in node.all_input_nodes if n in spreads]
        if rule is None or rule.moves is None or not isinstance(values[node], (list, tuple)) or len(followed) != 1:
            return None
        (source,) = followed

        def part(x: Tensor, i: int) -> Any:
            return self._run.step(node, {**values, source: x}, iter(()))[i]

        return source, [spreads[source].moved(partial(part, i=i)) for i in range(len(values[node]))]

    def _moved(
        self, node: fx.Node, values: Mapping[fx.Node, Any], spreads: Mapping[fx.Node, Spread]
    ) -> tuple[fx.Node, Spread] | None:
        """Returns what a node hands on, moved about, repeated or all scaled alike, and its spread."""
        rule, followed = rule_at(node), [n for n in node.all_input_nodes if n in spreads]
        value = values[node]
        if rule is None or len(followed) != 1 or not isinstance(value, Tensor) or not value.is_floating_point():
            return None  # whole numbers are rounded
        (source,) = followed
        given = {name: value for name, value in vars(bind(node)).items() if value is source}
        if len(given) != 1:
            return None
        alike = [values[n] for n in node.all_input_nodes if n is not source and isinstance(values[n], Tensor)]
        scaled = rule.powers.get(next(iter(given))) == 1.0 and all(x.numel() == 1 for x in alike)
        if (rule.conducts or scaled) and value.shape == values[source].shape:
            return source, spreads[source]
        if not rule.carries and not (rule.idle and rule.moves is not None):
            return None
        return source, spreads[source].moved(lambda x: self._run.step(node, {**values, source: x}, iter(())))

    def _product(
        self, contraction: Contraction, values: Mapping[fx.Node, Any], spreads: Mapping[fx.Node, Spread]
    ) -> Product | None:
        """Returns the product of two followed values that a contraction sums over channels of, if it does."""
        if contraction.other is None or not self._changed(contraction.axis):
            return None
        operands = ((contraction.source, contraction.dim), contraction.other)
        if any(n not in spreads for n, _ in operands) or operands[0][0] is operands[1][0]:
            return None
        sides = [_side(contraction.node, values[n], spreads[n], dim) for n, dim in operands]
        if sides[0] is None or sides[1] is None:
            return None
        pairs = None
        if not self._counted:
            firsts = [spreads[n].rows.select(dim, 0) for n, dim in operands]
            met = pairs_of(self._run, contraction, values, firsts)
            if met is None:
                return None
            places = [{int(row): i for i, row in enumerate(side.heads[:, 0])} for side in sides if side is not None]
            pairs = torch.tensor([[places[0][int(a)], places[1][int(b)]] for a, b in met])
        return Product((sides[0], sides[1]), pairs)

    def _mixed(
        self, node: fx.Node, values: Mapping[fx.Node, Any], spreads: Mapping[fx.Node, Spread]
    ) -> tuple[fx.Node, Spread] | None:
        """Returns the value that a node sums over places, and the spread of the result."""
        if is_kind(node, "attention"):
            a = bind(node)
            source = a.value
            if source not in spreads or not spreads[source].mixable(-2):
                return None
            rows = spreads[source].rows.narrow(-2, 0, 1)
            rows = repeated(a, values[node], rows, -3).expand(values[node].shape)
            places = torch.arange(rows[..., 0].numel(), device=rows.device).reshape(*rows.shape[:-1], 1)
            return source, replace(spreads[source], rows=rows, mixed=places.expand(rows.shape))
        sums = self._sums.get(node, ())
        if len(sums) != 1 or sums[0].other is None or len(node.all_input_nodes) != 2:
            return None
        operands = ((sums[0].source, sums[0].dim), sums[0].other)
        followed = [i for i, (n, _) in enumerate(operands) if n in spreads]
        if len(followed) != 1 or any(not isinstance(values[n], Tensor) for n, _ in operands):
            return None
        (source, dim), (weights, across) = operands[followed[0]], operands[1 - followed[0]]
        if not spreads[source].mixable(dim):
            return None
        ids = values[weights].select(across, 0)
        ids = torch.arange(ids.numel(), device=ids.device).reshape(ids.shape)
        rows, mixed = (
            self._run.step(
                node,
                {**values, source: hot(values[source], dim, x), weights: hot(values[weights], across, y)},
                iter(()),
            ).long()
            for x, y in ((spreads[source].rows.select(dim, 0), 1), (1, ids))
        )
        return source, replace(spreads[source], rows=rows, mixed=mixed)


def _side(node: fx.Node, value: Tensor, spread: Spread, dim: int) -> Meeting | None:
    """Returns an operand of a product by heads; None where what is summed is not the same outputs at all places."""
    if spread.mixed is not None:
        return None
    rows = spread.rows.movedim(dim, -1).reshape(-1, spread.rows.shape[dim])
    first, head = rows[:, 0].unique(return_inverse=True)
    heads = torch.zeros(len(first), rows.shape[1], dtype=torch.int64, device=rows.device)
    heads[head] = rows
    if not torch.equal(heads[head], rows) or len(heads.unique()) != heads.numel():
        return None
    vectors = value.movedim(dim, -1).reshape(rows.shape)
    apart = [vectors[head == i] for i in range(len(heads))]
    return Meeting(node, spread.maker, heads, apart) if len({len(x) for x in apart}) == 1 else None


def _samples(consumer: Consumer, values: Mapping[fx.Node, Any]) -> Tensor:
    """Returns what a linear layer or convolution without a kernel reads, ``[samples, columns]``."""
    x: Tensor = values[consumer.source]
    x = x if consumer.affine.last else x.movedim(1, -1)
    return x.reshape(-1, x.shape[-1])


def _again(consumer: Consumer, values: Mapping[fx.Node, Any], known: Meeting) -> Meeting:
    """Returns what a layer reads in another batch."""
    assert known.columns is not None
    x = _samples(consumer, values)
    return replace(known, values=[x[:, at] for at in known.columns])


def _reading(consumer: Consumer, values: Mapping[fx.Node, Any], spreads: Mapping[fx.Node, Spread]) -> Meeting | None:
    """Returns what a linear layer reads of another, by heads; None where it does more than that."""
    spread = spreads.get(consumer.source)
    if spread is None or consumer.groups > 1:
        return None
    if not consumer.affine.last:
        if values[consumer.source].shape[1] != consumer.kept.shape[1]:
            return None  # a kernel
        spread = spread.moved(lambda v: v.movedim(1, -1))
    x, rows = _samples(consumer, values), spread.rows.reshape(-1, spread.rows.shape[-1])
    mixed = torch.zeros_like(rows) if spread.mixed is None else spread.mixed.reshape(rows.shape)
    _, head = mixed[0].unique(return_inverse=True)
    members = [torch.nonzero(head == i).flatten() for i in range(int(head.max()) + 1)]
    if not (rows == rows[0]).all() or any(not (mixed[:, at] == mixed[:, at[:1]]).all() for at in members):
        return None
    members = [at[rows[0, at].argsort()] for at in members]
    heads = [rows[0, at] for at in members]
    if len({len(at) for at in members}) > 1 or any(len(each.unique()) < len(each) for each in heads):
        return None
    return Meeting(consumer.node, spread.maker, torch.stack(heads), [x[:, at] for at in members], torch.stack(members))

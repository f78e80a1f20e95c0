"""Flows: where a layer's outputs stand in later values, as long as they are only moved about, scaled alike, or mixed over places.

The number of each output goes through the graph in the place of its value. Where two such values are multiplied and
summed over channels (queries and keys), or one is read by a linear layer (values, behind the attention), each head may give its
channels in any basis: the layer on the other side takes it up.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from fxprune._base.names import fetch
from fxprune.coupling.selection import Selection
from fxprune.ops.registry import bind, is_kind, rule_at
from fxprune.ops.tracer import Contraction
from fxprune.recovery.consumers import Consumer, own_parameter
from fxprune.twin.interpreter import Run


@dataclass(frozen=True, slots=True, eq=False)
class Maker:
    """A linear layer or convolution whose outputs are followed.

    Attributes:
        node: the op in the captured graph.
        weight: the weight's name; outputs lie along its first dimension.
        bias: the bias' name, if there is one.
    """

    node: fx.Node
    weight: str
    bias: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """A layer's outputs at their places in a value.

    Attributes:
        maker: the layer.
        rows: the number of the output at each place, int64, of the value's shape.
        mixed: numbers, of the value's shape, that are equal where places were mixed by the same weights; None before that.
    """

    maker: Maker
    rows: Tensor
    mixed: Tensor | None = None

    def moved(self, move: Callable[[Tensor], Any]) -> Spread:
        """Returns the spread of a value that holds the same things elsewhere: ``move`` is of tensors ``[...]``."""
        return replace(self, rows=move(self.rows), mixed=None if self.mixed is None else move(self.mixed))


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


def makers(selection: Selection) -> dict[fx.Node, Maker]:
    """Returns the layers that lose outputs and whose weights may be changed, by node."""
    coupling, found = selection.coupling, {}
    for contraction in coupling.contractions:
        node, weight = contraction.node, contraction.weight
        if weight is None or not is_kind(node, "linear", "conv") or len(weight.users) > 1:
            continue
        rows, a = coupling.values[weight][0], bind(node)
        tensor, biased = fetch(coupling.captured.module, str(weight.target)), a.bias is not None
        bias = own_parameter(coupling, a.bias)
        plain = tensor.dim() > 1 and not tensor.is_complex() and getattr(a, "groups", 1) == 1
        plain &= is_kind(node, "linear") or len(coupling.captured.info[a.input].shape) == tensor.dim()  # with a batch
        if selection.slicer.changed(rows) and plain and biased == bool(bias):
            found[node] = Maker(node, str(weight.target), bias)
    return found


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
        self.uses = {m: torch.zeros(len(fetch_weight(selection, m)), dtype=torch.int64) for m in self.makers.values()}
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
                spreads[node] = _fresh(self.makers[node], values[node])
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
                self.others[spreads[source].maker][spreads[source].rows.unique().cpu()] += 1

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
            if source not in spreads or not _mixable(spreads[source], -2):
                return None
            rows = spreads[source].rows.narrow(-2, 0, 1)
            rows = _repeated(a, values[node], rows, -3).expand(values[node].shape)
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
        if not _mixable(spreads[source], dim):
            return None
        ids = values[weights].select(across, 0)
        ids = torch.arange(ids.numel(), device=ids.device).reshape(ids.shape)
        rows, mixed = (
            self._run.step(
                node,
                {**values, source: _hot(values[source], dim, x), weights: _hot(values[weights], across, y)},
                iter(()),
            ).long()
            for x, y in ((spreads[source].rows.select(dim, 0), 1), (1, ids))
        )
        return source, replace(spreads[source], rows=rows, mixed=mixed)


def fetch_weight(selection: Selection, maker: Maker) -> Tensor:
    """Returns a layer's weight as the model has it, ``[outputs, ...]``."""
    found: Tensor = fetch(selection.coupling.captured.module, maker.weight).detach()
    return found


def pairs_of(
    run: Run, contraction: Contraction, values: Mapping[fx.Node, Any], firsts: Sequence[Tensor]
) -> Tensor | None:
    """Returns what of two operands meets in the sums, ``[pairs, 2]``, told by a number for each vector; below 0 for nothing."""
    node = contraction.node
    if is_kind(node, "attention"):
        left, right = (first.amax(-1) for first in firsts)
        if any(
            ((first >= 0) & (first != one[..., None])).any() for first, one in zip(firsts, (left, right), strict=True)
        ):
            return None  # heads lie where places are: all of them meet
        right = _repeated(bind(node), left, right, -1)
        met = torch.broadcast_tensors(left, right)
    else:
        operands = ((contraction.source, contraction.dim), contraction.other or (contraction.source, 0))
        if len(node.all_input_nodes) != 2:
            return None
        marks = [_hot(values[n], dim, first) for (n, dim), first in zip(operands, firsts, strict=True)]
        ones = [_hot(values[n], dim, 1) for n, dim in operands]
        (a, _), (b, _) = operands
        if not (run.step(node, {**values, a: ones[0], b: ones[1]}, iter(())) == 1).all():
            return None  # more than channels is summed, or something is added
        met = [
            run.step(node, {**values, a: x, b: y}, iter(())).long()
            for x, y in ((marks[0], ones[1]), (ones[0], marks[1]))
        ]
    found: Tensor = torch.stack([x.reshape(-1) for x in met], dim=1).unique(dim=0)
    return found


def operands_of(contraction: Contraction) -> tuple[fx.Node, fx.Node]:
    """Returns the operands of a product of two activations."""
    assert contraction.other is not None
    return contraction.source, contraction.other[0]


def _fresh(maker: Maker, value: Tensor) -> Spread:
    """Returns the spread of a layer's own outputs."""
    dim = value.dim() - 1 if is_kind(maker.node, "linear") else 1
    rows = torch.arange(value.shape[dim], device=value.device)
    return Spread(maker, rows.reshape(-1, *[1] * (value.dim() - 1 - dim)).expand(value.shape))


def _hot(like: Tensor, dim: int, value: Tensor | int) -> Tensor:
    """Returns float64 zeros of a value's shape, but for the first place along a dimension."""
    found = torch.zeros(like.shape, dtype=torch.float64, device=like.device)
    found.select(dim, 0)[...] = value
    return found


def _repeated(a: Any, queries: Tensor, grouped: Tensor, dim: int) -> Tensor:
    """Returns the heads of keys or values once for each head of the queries, along a dimension counted from the end."""
    times = queries.shape[dim] // grouped.shape[dim] if a.enable_gqa else 1
    return grouped.repeat_interleave(times, dim) if times > 1 else grouped


def _mixable(spread: Spread, dim: int) -> bool:
    """Returns whether what is summed along a dimension is one output, at many places, that nothing has mixed yet."""
    return spread.mixed is None and bool((spread.rows == spread.rows.narrow(dim, 0, 1)).all())


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
    x = x if is_kind(consumer.node, "linear") else x.movedim(1, -1)
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
    if not is_kind(consumer.node, "linear"):
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


def shifted_side(node: fx.Node, info: Mapping[fx.Node, Any]) -> int | None:
    """Returns the side of a product whose mean over places changes nothing, because a softmax over them follows; None if none."""
    if is_kind(node, "attention"):
        return 1
    if not hasattr(bind(node), "self"):
        return None  # an einsum may have its places anywhere
    while len(node.users) == 1:
        user, sizes = next(iter(node.users)), info[node].shape
        if is_kind(user, "softmax"):
            return {len(sizes) - 1: 1, len(sizes) - 2: 0}.get(bind(user).dim % len(sizes))
        rule, scaled = rule_at(user), user.all_input_nodes == [node]
        same = rule is not None and (rule.conducts or (scaled and rule.powers.get("self") == 1.0))
        if (
            not same
            and not is_kind(user, "addition")
            and not (is_kind(user, "reshape") and info[user].shape[-2:] == sizes[-2:])
        ):
            return None
        node = user
    return None

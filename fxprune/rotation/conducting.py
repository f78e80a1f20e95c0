"""What conducts a change of basis: found by trying, op by op, on the values themselves.

An op on a stream conducts it if operands in another basis give the result in that basis, or the same result where the stream ends. So
do sums, sums of products with weights that are given in it too, norms without their gains, and whatever else commutes with a rotation;
a ReLU does not. What an op that does not gives may still be of no consequence: the square of a norm that is written out is summed,
and in the sum nothing is seen of the basis. Beside the values of the first batch each op gets drawn ones, small and large, since a ReLU of
what happens to be positive, or a clamp of what is not that large yet, would do nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.ops.registry import bind, is_kind
from fxprune.rotation.gains import Gain, gain_of, operands_of_gain
from fxprune.rotation.streams import Stream
from fxprune.twin.interpreter import Run

#: How far apart, as a share of the largest value, equal values may be in float64.
_CLOSE = 1e-9
#: Values as large as that stand for what is masked, and do not say how large the others are.
MASK = 1e15
#: What each op is tried on: the values of the batch, and normal ones of these sizes.
_SIZES = (None, 1e-3, 1.0, 1e3, 1e6)


@dataclass(frozen=True, slots=True)
class Spot:
    """A place of a stream; a parameter has one for each op that reads it.

    Attributes:
        node: the value.
        dim: along which dimension the stream lies.
        user: of a parameter, the op.
    """

    node: fx.Node
    dim: int
    user: fx.Node | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """How levels go together, channel by channel: ``level[second] = level[first] ** power * factor``."""

    first: Spot
    second: Spot
    power: int = 1
    factor: Tensor | None = None


@dataclass(slots=True, eq=False)
class Conduction:
    """What is known of a stream once every op on it was tried.

    Attributes:
        refused: why its basis has to stay; empty if it may change.
        links: between its spots.
        flat: spots at which no channel may have a gain of its own, since a norm reads them.
        gains: (the spot of the result, what an op does to each channel) of each op with a gain.
    """

    refused: str = ""
    links: list[Link] = field(default_factory=list)
    flat: list[Spot] = field(default_factory=list)
    gains: list[tuple[Spot, Gain]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class _Strange:
    """A value that is not the same one in the other basis of a stream.

    Attributes:
        dense: what it is, for each of what it was tried on.
        turned: what it is in the other basis.
        stream: the stream's number.
        began: the op at which that begins.
    """

    dense: list[Any]
    turned: list[Any]
    stream: int
    began: fx.Node


@torch.no_grad()
def conduction(
    coupling: Coupling, streams: Sequence[Stream], bases: Sequence[Tensor], inputs: Sequence[Tensor]
) -> list[Conduction]:
    """Returns what becomes of each stream in another basis.

    Args:
        coupling: of the captured graph.
        streams: some of its streams.
        bases: an orthogonal matrix for each, ``[channels, channels]``, float64.
        inputs: flat, ``[...]`` as the graph takes them.
    """
    return _Walk(coupling, streams, bases).through(inputs)


class _Walk:
    """One pass through the graph, in float64."""

    def __init__(self, coupling: Coupling, streams: Sequence[Stream], bases: Sequence[Tensor]) -> None:
        self._bases = bases
        self._run = Run(Selection.nothing(coupling), torch.float64)
        self._found = [Conduction() for _ in streams]
        self._pairs: dict[fx.Node, list[tuple[tuple[fx.Node, int], tuple[fx.Node, int]]]] = {}
        for c in coupling.contractions:
            other = c.other if c.weight is None else (c.weight, c.weight_dim)
            if other is not None:
                self._pairs.setdefault(c.node, []).append(((c.source, c.dim), other))
        self._on: dict[fx.Node, list[tuple[int, int]]] = {}
        for number, stream in enumerate(streams):
            for node, dims in stream.places.items():
                self._on.setdefault(node, []).extend((number, dim) for dim in dims)
        self._constant = constant = _constants(self._run.graph)
        known = constant & self._on.keys()
        self._gained = {node: operands_of_gain(node, known) for node in self._on}
        self._aside = self._made_of({gain for operands in self._gained.values() for gain in operands})
        self._draw = draw = torch.Generator().manual_seed(1)
        self._scales = [(torch.rand(len(b), generator=draw, dtype=torch.float64) + 0.5).to(b.device) for b in bases]
        self._values: dict[fx.Node, Any] = {}
        self._drawn: dict[fx.Node, list[Any]] = {}
        self._strange: dict[fx.Node, _Strange] = {}

    def through(self, inputs: Sequence[Tensor]) -> list[Conduction]:
        """Returns what was found."""
        feed = iter(inputs)
        for node in self._run.graph.nodes:
            self._values[node] = self._run.step(node, self._values, feed)
            touched = {number for at in (node, *node.all_input_nodes) for number, _ in self._at(at)}
            if touched and node.op not in ("placeholder", "get_attr") and node not in self._aside:
                self._try(node, touched)
            for source in self._run.last.get(node, ()):
                del self._values[source]
                self._strange.pop(source, None)
                self._drawn.pop(source, None)
        return self._found

    def _at(self, node: fx.Node) -> list[tuple[int, int]]:
        """Returns the (stream, dimension) pairs at a value, of streams that are still tried."""
        return [(number, dim) for number, dim in self._on.get(node, ()) if not self._found[number].refused]

    def _made_of(self, gains: set[fx.Node]) -> set[fx.Node]:
        """Returns the values that gains are made of; refuses streams that read these as well."""
        chain, todo = set[fx.Node](), list(gains)
        while todo:
            chain.add(node := todo.pop())
            todo += set(node.all_input_nodes) - chain
        for node in chain:
            for user in node.users:
                if user not in chain and node not in self._gained.get(user, ()):
                    for number, _ in self._at(node):
                        self._refuse(number, user, "it reads what is the gain of another op")
        return chain

    def _refuse(self, number: int, node: fx.Node, why: str = "") -> None:
        where = f" in {module}" if (module := node.meta.get("module")) else ""
        self._found[number].refused = f"{node.target}{where}" + (f": {why}" if why else "")

    # -- an op --------------------------------------------------------------------------------------------------

    def _try(self, node: fx.Node, touched: set[int]) -> None:
        """Finds out whether an op conducts streams, and how levels go through it."""
        operands = self._gained.get(node)
        gain = gain_of(node, operands, self._values) if operands else None
        neutral = gain.neutral if gain is not None else {}
        if self._conducts(node, touched, neutral):
            for number in touched:
                self._link(node, number, gain)
            return
        guilty = {number for number in touched if not self._conducts(node, {number}, neutral)} or touched
        began = next((self._strange[source].began for source in node.all_input_nodes if source in self._strange), node)
        for number in guilty:
            if len(guilty) == 1 and gain is None and any(number == other for other, _ in self._at(node)):
                self._found[number].flat += self._spots(node, number)
                pairs = [self._both(node, guilty, neutral, i) for i in range(len(_SIZES))]
                self._strange[node] = _Strange([a for a, _ in pairs], [b for _, b in pairs], number, began)
            else:
                self._refuse(number, began)
        if rest := touched - guilty:
            self._try(node, rest)

    def _conducts(self, node: fx.Node, touched: set[int], neutral: Mapping[fx.Node, Any]) -> bool:
        """Returns whether an op conducts some streams together."""
        if self._sums_products(node, touched):
            return not any(self._is_strange(source, touched) for source in node.all_input_nodes)
        both = (self._both(node, touched, neutral, i) for i in range(len(_SIZES)))
        return all(_equal(other, self._turned(node, touched, dense)) for dense, other in both)

    def _sums_products(self, node: fx.Node, touched: set[int]) -> bool:
        """Returns whether an op is a layer that only sums over what it reads of streams: it conducts them, and gains as well."""
        if not is_kind(node, "linear", "conv"):
            return False
        source = bind(node).input
        return all(
            any(first == (source, dim) for first, _ in self._summed(node, number))
            for number, dim in self._at(source)
            if number in touched
        )

    def _summed(self, node: fx.Node, number: int) -> list[tuple[tuple[fx.Node, int], tuple[fx.Node, int]]]:
        """Returns the pairs of (operand, dimension) along which an op sums products of a stream with itself or with weights."""
        return [pair for pair in self._pairs.get(node, ()) if all((number, dim) in self._at(at) for at, dim in pair)]

    def _operands(self, node: fx.Node) -> dict[fx.Node, Any]:
        return {source: self._values[source] for source in node.all_input_nodes}

    def _both(self, node: fx.Node, touched: set[int], neutral: Mapping[fx.Node, Any], size: int) -> tuple[Any, Any]:
        """Returns the result of an op on operands as they are, and in the other basis; ``size`` says which ones."""
        plain, other = dict[fx.Node, Any](), dict[fx.Node, Any]()
        for source in node.all_input_nodes:
            if self._is_strange(source, touched):
                plain[source], other[source] = (
                    part[size] for part in (self._strange[source].dense, self._strange[source].turned)
                )
            else:
                plain[source] = self._operand(source, touched, size)
                other[source] = self._turned(source, touched, plain[source])
        dense, changed = (self._run.step(node, {**given, **neutral}, iter(())) for given in (plain, other))
        return dense, changed

    def _operand(self, node: fx.Node, touched: set[int], size: int) -> Any:
        """Returns a value of the batch, or, on a stream, one drawn in its place."""
        value = self._values[node]
        on = any(number in touched for number, _ in self._at(node)) and node not in self._constant
        if _SIZES[size] is None or not on or not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if node not in self._drawn:
            self._drawn[node] = [value if each is None else each * self._normal(value) for each in _SIZES]
        return self._drawn[node][size]

    def _normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._draw, dtype=like.dtype).to(like.device)

    def _is_strange(self, node: fx.Node, touched: set[int]) -> bool:
        """Returns whether a value is not the same one in the other basis of one of some streams."""
        return node in self._strange and self._strange[node].stream in touched

    def _turned(self, node: fx.Node, touched: set[int], value: Any) -> Any:
        """Returns a value in the other basis; what is no floating number has none."""
        for number, dim in self._at(node) if isinstance(value, Tensor) and value.is_floating_point() else ():
            if number in touched:
                value = turned(value, dim, self._bases[number])
        return value

    def _spots(self, user: fx.Node, number: int) -> list[Spot]:
        """Returns the spots of a stream among what an op reads, but for what makes its gain."""
        return [
            Spot(node, dim, user if node.op == "get_attr" else None)
            for node in user.all_input_nodes
            if node not in self._gained.get(user, ()) and not self._is_strange(node, {number})
            for other, dim in self._at(node)
            if other == number
        ]

    def _link(self, node: fx.Node, number: int, gain: Gain | None) -> None:
        """Finds how the levels of a stream go through an op that conducts it."""
        found, spots = self._found[number], self._spots(node, number)
        out = next((Spot(node, dim) for other, dim in self._at(node) if other == number), None)
        pairs = [
            tuple(next(s for s in spots if (s.node, s.dim) == at) for at in pair) for pair in self._summed(node, number)
        ]
        if not pairs and out is None and len(spots) == 2:  # a product that no layer of torch makes
            pairs = [tuple(spots)]
        summed = {spot for pair in pairs for spot in pair}
        neutral = gain.neutral if gain is not None else {}
        strange = any(self._is_strange(source, {number}) for source in node.all_input_nodes)
        free = not strange and self._is_free(node, number, {pair[1] for pair in pairs}, neutral)
        if free:
            found.links += [Link(first, second, -1) for first, second in pairs]
        else:
            found.flat += spots
        if out is None:
            return
        factor = None if gain is None else gain.factor
        through = [spot for spot in spots if spot not in summed]
        found.links += [Link(spot, out, 1, factor) for spot in through]
        if not through:
            found.flat.append(out)
        if gain is not None:
            found.gains.append((out, gain))

    def _is_free(self, node: fx.Node, number: int, inverse: set[Spot], neutral: Mapping[fx.Node, Any]) -> bool:
        """Returns whether an op conducts gains of each channel of a stream too."""
        if self._sums_products(node, {number}):
            return True
        turned_down = {(spot.node, spot.dim) for spot in inverse}

        def scaled(at: fx.Node, value: Any) -> Any:
            for other, dim in self._at(at) if isinstance(value, Tensor) and value.is_floating_point() else ():
                if other == number:
                    scale = self._scales[number]
                    scale = 1 / scale if (at, dim) in turned_down else scale
                    value = value * scale.to(value).reshape(-1, *[1] * (value.dim() - 1 - dim))
            return value

        operands = self._operands(node)
        dense = self._run.step(node, {**operands, **neutral}, iter(()))
        changed = {source: scaled(source, value) for source, value in operands.items()}
        return _equal(self._run.step(node, {**changed, **neutral}, iter(())), scaled(node, dense))


def turned(value: Tensor, dim: int, basis: Tensor) -> Tensor:
    """Returns a value, ``[...]``, whose channels along a dimension are given in another basis, ``[channels, channels]``."""
    return (value.movedim(dim, -1) @ basis.to(value)).movedim(-1, dim)


def _constants(graph: fx.Graph) -> set[fx.Node]:
    """Returns the values that depend on no input."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr" or (node.op == "call_function" and set(node.all_input_nodes) <= found):
            found.add(node)
    return found


def _equal(x: Any, y: Any) -> bool:
    """Returns whether two values of an op, ``[...]``, are the same but for rounding."""
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or x.shape != y.shape:
        return False
    if not x.is_floating_point():
        return torch.equal(x, y)
    ordinary = y[y.abs() < MASK]
    room = _CLOSE * float(ordinary.abs().max()) if ordinary.numel() else 0.0
    return torch.allclose(x, y, rtol=_CLOSE * bool(len(ordinary) < y.numel()), atol=room, equal_nan=True)

"""What must go together, found by trying: a second opinion on `fxprune.couple` that shares none of its algebra.

A *cut* takes whole coordinates out of the dimensions of every value of a captured graph. It is legal if every op still
fits: what faces each other in a sum, or element by element, loses the same coordinates; what is only moved about loses
the very elements that its source loses, and what is left of it is a box; outputs keep their shape; no parameter is
left empty. Whatever such a graph takes a statistic of, it takes of what is there. Whether a coordinate may go once
others must stay is then settled by trying: keep them, drop what no longer fits, and look whether it is still there.

So there are no labels, no classes and no refinements here; only "this goes only if one of those goes". Nothing says
that a cut must be the same in every group or head: that comes out where a reshape has to give a box.

- *c forces d*: no legal cut takes c and leaves d.
- *frozen*: no legal cut takes c.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from fxprune._base.names import fetch
from fxprune.capturing.captured import Captured
from fxprune.coupling.coupling import Coupling
from tests.support.bruteforce.cuts import STAYS, Box, Demands
from tests.support.bruteforce.ops import Call, demand

#: (tensor, dimension, position)
Coordinate = tuple[str, int, int]
Pair = tuple[Coordinate, Coordinate]


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A captured network as demands.

    Attributes:
        demands: what must hold.
        tensors: parameter or persistent buffer -> its box.
        calls: every op that depends on one, with the box of its result (a list for several).
    """

    demands: Demands
    tensors: dict[str, Box]
    calls: tuple[tuple[Call, Any], ...] = ()

    def coordinates(self) -> dict[Coordinate, int]:
        """Returns the variable of every coordinate of every tensor's dimensions of more than one."""
        return {
            (name, dim, position): int(variable)
            for name, box in self.tensors.items()
            for dim, variables in enumerate(box)
            for position, variable in enumerate(variables)
            if len(variables) > 1
        }


def network_of(captured: Captured) -> Network:
    """Returns the demands of a captured network, read off a run on its example.

    Raises:
        UnknownOpError: an op that this opinion is not about.
    """
    reader = _Reader(captured, Demands(), _run(captured))
    for node in captured.module.graph.nodes:
        if node.op == "output":
            for value in node.all_input_nodes:
                for part in _parts(reader.read(value, {})):
                    reader.demands.keep(itertools.chain(*part))
        elif node in reader.bound:
            reader.boxes[node] = reader.visit(node)
    network = Network(reader.demands, reader.tensors, tuple(reader.calls))
    _leave_none_empty(network)
    return network


def _leave_none_empty(network: Network) -> None:
    """Keeps whatever could only go with a whole dimension of a parameter."""
    demands, found = network.demands, True
    while found:
        found = False
        for box in network.tensors.values():
            for line in box:
                kept = [np.frombuffer(demands.largest([v]), np.uint8) for v in line.tolist()]
                emptying = np.flatnonzero(np.min(kept, axis=0))
                found |= any(not demands.stays(int(v)) for v in emptying)
                demands.keep(emptying.tolist())


def forces(network: Network, coordinates: Sequence[Coordinate]) -> npt.NDArray[np.bool_]:
    """Returns whether coordinate i cannot go while coordinate j stays, ``[i, j]``."""
    variable_of = network.coordinates()
    variables = [variable_of[c] for c in coordinates]
    table = np.zeros((len(variables), len(variables)), bool)
    for j, variable in enumerate(variables):
        stays = np.frombuffer(network.demands.largest([variable]), np.uint8)
        table[:, j] = stays[variables] > 0
    return table


# -- reading a graph ------------------------------------------------------------------------------------------------


def _run(captured: Captured) -> dict[fx.Node, Any]:
    """Returns the value of every node on the example."""
    values: dict[fx.Node, Any] = {}
    feed = iter(captured.example)
    for node in captured.module.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(feed)
        elif node.op == "get_attr":
            values[node] = fetch(captured.module, str(node.target)).detach()
        elif node.op == "call_function":
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            with torch.no_grad():
                values[node] = node.target(*args, **kwargs)
    return values


def _parts(value: Any) -> list[Box]:
    return value if isinstance(value, list) else [value]


@dataclass
class _Reader:
    """Walks a graph and writes down what each op demands.

    Attributes:
        bound: nodes that depend on a parameter or a persistent buffer. Of any other value every reader may take a part
            of its own, so each gets a copy of all that leads there.
        given: nodes that depend on an input.
        boxes: the boxes of the nodes that are bound.
    """

    captured: Captured
    demands: Demands
    values: dict[fx.Node, Any]
    tensors: dict[str, Box] = field(default_factory=dict)
    boxes: dict[fx.Node, Any] = field(default_factory=dict)
    calls: list[tuple[Call, Any]] = field(default_factory=list)
    bound: set[fx.Node] = field(default_factory=set)
    given: set[fx.Node] = field(default_factory=set)

    def __post_init__(self) -> None:
        for node in self.captured.module.graph.nodes:
            if not isinstance(self.values.get(node), (Tensor, list, tuple)):
                continue  # a size
            sources = [s for s in node.all_input_nodes if isinstance(self.values.get(s), (Tensor, list, tuple))]
            if node.op == "get_attr" and node.target in self.captured.persistent:
                self.bound |= {node} if self.values[node].is_floating_point() else set()
            elif any(source in self.bound for source in sources):
                self.bound.add(node)
            if node.op == "placeholder" or any(source in self.given for source in sources):
                self.given.add(node)

    def read(self, node: fx.Node, copies: dict[fx.Node, Any]) -> Any:
        """Returns a node's box, or that of a copy for the reader whose copies these are."""
        if node in self.bound:
            return self.boxes[node]
        if node not in copies:
            value = self.values[node]
            if node.op == "placeholder" or (node.op == "get_attr" and node.target in self.captured.persistent):
                copies[node] = _fixed(value)
            elif node in self.given:
                copies[node] = self.visit(node, copies)
            else:
                made = [
                    tuple(map(self.demands.new, v.shape))
                    for v in (value if isinstance(value, (list, tuple)) else [value])
                ]
                copies[node] = made if isinstance(value, (list, tuple)) else made[0]
        return copies[node]

    def visit(self, node: fx.Node, copies: dict[fx.Node, Any] | None = None) -> Any:
        """Returns the box of a node's result (a list for several), demanding what its op demands."""
        if node.op == "get_attr":
            name = str(node.target)
            if name not in self.tensors:
                self.tensors[name] = tuple(map(self.demands.new, self.values[node].shape))
            return self.tensors[name]
        copies = {} if copies is None else copies
        if node.target is operator.getitem:
            return self.read(node.all_input_nodes[0], copies)[node.args[1]]
        boxes = {
            s: self.read(s, copies) for s in node.all_input_nodes if isinstance(self.values[s], (Tensor, list, tuple))
        }
        call = Call(node, self.demands, self.values, boxes, self.given)
        box = demand(call)
        if node in self.bound:
            self.calls.append((call, box))
        return box


def _fixed(value: Tensor) -> Box:
    return tuple(np.zeros(size, np.int64) for size in value.shape)


# -- against a coupling ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Claims:
    """What a coupling says, as plain sets.

    Attributes:
        options: coordinate -> the channels that it goes with, any of them; none if it is frozen.
        footprints: channel -> the coordinates that go with it.
    """

    options: dict[Coordinate, frozenset[int]]
    footprints: dict[int, frozenset[Coordinate]]


def claims_of(coupling: Coupling) -> Claims:
    """Returns what a coupling says about every coordinate of every parameter and persistent buffer.

    A channel that lies on all of a value stays: the solver leaves something of each.
    """
    held = _alone(coupling)
    options = {
        (axis.tensor, axis.dim, position): frozenset(row.tolist()) - held
        for axis in coupling.axes
        for position, row in enumerate(axis.labels)
    }
    return claims(options)


def _alone(coupling: Coupling) -> set[int]:
    """Returns channel 0, which never goes, and those on every coordinate of some value's factor."""
    held = {STAYS}
    for value in coupling.values.values():
        for axes in value if isinstance(value, list) else [value or ()]:
            for factor in itertools.chain(*(axes or ())):
                if factor.labels is not None:
                    rows = coupling.channels.resolve(factor.labels)
                    held.update(c for c in rows[0].tolist() if (rows == c).any(axis=1).all())
    return held


def claims(options: dict[Coordinate, frozenset[int]]) -> Claims:
    """Returns the claims that these options amount to."""
    footprints: dict[int, set[Coordinate]] = {}
    for coordinate, channels in options.items():
        for channel in channels:
            footprints.setdefault(channel, set()).add(coordinate)
    return Claims(options, {channel: frozenset(found) for channel, found in footprints.items()})


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Where two opinions differ.

    Attributes:
        coordinates: how many were compared.
        units: how many channels the coupling has.
        wrong: coordinates that a channel takes and no legal cut can; the cut that is left breaks.
        missing: (c, d): no legal cut takes c and leaves d, yet a channel does.
        illegal: channels whose footprint is no legal cut, for either of these reasons or because a tensor would be left empty.
        coarse: (c, d): every channel of c takes d, though a legal cut takes c and leaves d.
        frozen: coordinates without a channel that a legal cut takes.
        lost: coordinates with several channels, and a legal cut that takes them and none of these channels whole.
    """

    coordinates: int
    units: int
    wrong: tuple[Coordinate, ...]
    missing: tuple[Pair, ...]
    illegal: tuple[int, ...]
    coarse: tuple[Pair, ...]
    frozen: tuple[Coordinate, ...]
    lost: tuple[Coordinate, ...]

    @property
    def right(self) -> bool:
        """Whether every channel's footprint is a legal cut."""
        return not (self.wrong or self.missing or self.illegal)

    @property
    def agree(self) -> bool:
        """Whether the coupling is right, and offers all that trying finds."""
        return self.right and not (self.coarse or self.frozen or self.lost)

    @property
    def pairs(self) -> int:
        """How many ordered pairs were compared."""
        return self.coordinates * (self.coordinates - 1)


def compare(network: Network, said: Claims) -> Disagreement:
    """Returns where a coupling and trying differ, coordinate by coordinate and pair by pair."""
    demands = network.demands
    variable_of = {c: v for c, v in network.coordinates().items() if c in said.options}
    live = [c for c, v in variable_of.items() if not demands.stays(v)]
    both = [c for c in live if said.options[c]]
    tried, claimed = forces(network, both), _claimed(said, both)
    alike = {c: int(row.argmax()) for c, row in zip(both, tried & tried.T, strict=True)}
    first = [both[alike[c]] for c in both]  # of coordinates that force each other one is tried

    @functools.cache
    def parted(take: Coordinate, *leave: Coordinate) -> bool:
        return demands.cut([variable_of[take]], [variable_of[c] for c in leave]) is not None

    coarse = [(i, j) for i, j in np.argwhere(claimed & ~tried) if parted(first[i], first[j])]
    rough = {i for i, _ in coarse}

    def more(i: int) -> bool:
        """Returns whether a coordinate may go although each of its channels leaves something."""
        choices = [
            {first[j] for j, d in enumerate(both) if d in said.footprints[channel] and not claimed[i, j]}
            for channel in said.options[both[i]]
        ]
        return len(choices) > 1 and any(parted(first[i], *kept) for kept in itertools.product(*choices))

    return Disagreement(
        coordinates=len(variable_of),
        units=len(said.footprints),
        wrong=tuple(c for c in variable_of if said.options[c] and demands.stays(variable_of[c])),
        missing=tuple((both[i], both[j]) for i, j in np.argwhere(tried & ~claimed)),
        illegal=tuple(channel for channel, cut in said.footprints.items() if not legal(network, cut)),
        coarse=tuple((both[i], both[j]) for i, j in coarse),
        frozen=tuple(c for c in live if not said.options[c] and parted(c)),
        lost=tuple(c for i, c in enumerate(both) if i not in rough and more(i)),
    )


def _claimed(said: Claims, coordinates: Sequence[Coordinate]) -> npt.NDArray[np.bool_]:
    """Returns whether every channel of coordinate i takes coordinate j, ``[i, j]``."""
    index = {c: i for i, c in enumerate(coordinates)}
    table = np.zeros((len(coordinates), len(coordinates)), bool)
    for i, c in enumerate(coordinates):
        everywhere = frozenset.intersection(*(said.footprints[u] for u in said.options[c]))
        table[i, [index[d] for d in everywhere if d in index]] = True
    return table


def legal(network: Network, cut: Iterable[Coordinate]) -> bool:
    """Returns whether the graph still fits with exactly these coordinates gone, and something is left of every value."""
    gone, variable_of = set(cut), network.coordinates()
    take = [variable_of[c] for c in gone if c in variable_of]
    return network.demands.cut(take, (v for c, v in variable_of.items() if c not in gone)) is not None

"""Training's graph beside the evaluation's: what only training reads is coupled too, and one selection fits both."""

from __future__ import annotations

import zlib
from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import fx, nn

from fxprune._base.names import fetch, place
from fxprune.algebra.axes import labels_of
from fxprune.algebra.channels import Ids, Mask
from fxprune.capturing.captured import Captured
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.interpreter import couple_counted
from fxprune.coupling.selection import Selection
from fxprune.homing.statistics import uncounted
from fxprune.rewriting.slicing import keep_indices


@dataclass(frozen=True, slots=True, eq=False)
class Joined:
    """Two graphs of one model coupled as one.

    Attributes:
        whole: the coupling of both.
        channel_of: for each channel of the evaluation's coupling that of both, ``[channels]``; 0 for one that has to stay.
        counted: flags those over which a statistic runs, in training alone, that the class cannot take over fewer, ``[channels]``.
    """

    whole: Coupling
    channel_of: Ids
    counted: Mask

    def held(self) -> Mask:
        """Flags the channels of the evaluation, ``[channels]``, that have to stay, or would take another one with them."""
        counts = np.bincount(self.channel_of)
        alone: Mask = (counts[self.channel_of] == 1) & (self.channel_of > 0)
        return ~alone | self.counted

    def kept(self, selection: Selection) -> dict[str, dict[int, Ids]]:
        """Returns what is left, ``[kept]``, of each dimension of all tensors of both, where the evaluation loses a selection."""
        removed = np.zeros(len(self.whole.channels), bool)
        removed[self.channel_of[selection.removed]] = True
        removed[0] = False
        return keep_indices(Selection(self.whole, removed))


def joined(coupling: Coupling, training: Captured) -> Joined:
    """Returns a model's coupling in evaluation joined with its graph in training: they share parameters and buffers."""
    whole = couple_counted(_both(coupling.captured, training))
    axes = {(axis.tensor, axis.dim) for axis in coupling.axes}
    here, there = _places(coupling, axes), _places(whole, axes)
    known = {int(places): channel for channel, places in enumerate(there) if channel and places}
    found = [known.get(int(places), 0) if channel else 0 for channel, places in enumerate(here)]
    return Joined(whole, np.array(found, np.int64), _counted(coupling, training, whole))


def _counted(coupling: Coupling, training: Captured, whole: Coupling) -> Mask:
    found = np.zeros(len(coupling.channels), bool)
    if len(whole.statistics) == 2 * len(coupling.statistics):  # the same in both
        return found
    alone = couple_counted(training)
    parts = [alone.channels.resolve(labels).reshape(-1) for axis in uncounted(alone) for labels in labels_of(axis)]
    over = np.unique(np.concatenate([np.zeros(1, np.int64), *parts]))[1:]
    mine = {(axis.tensor, axis.dim): axis for axis in coupling.axes}
    for axis in alone.axes:
        own = mine.get((axis.tensor, axis.dim))
        if own is not None and len(own.labels) == len(axis.labels):
            hit = np.isin(alone.channels.resolve(axis.labels), over).any(axis=1)
            found[coupling.channels.resolve(own.labels[hit])] = True
    found[0] = False
    return found


def _places(coupling: Coupling, axes: Set[tuple[str, int]]) -> Ids:
    """Returns a number for each channel, ``[channels]``, that two have alike only if they lie on the same coordinates of some axes."""
    places = np.zeros(len(coupling.channels), np.uint64)
    for axis in coupling.axes:
        if (axis.tensor, axis.dim) in axes:
            seed = zlib.crc32(f"{axis.tensor}[{axis.dim}]".encode())
            marks = np.random.default_rng(seed).integers(1, 1 << 63, len(axis.labels), np.uint64)
            np.add.at(places, axis.labels, marks[:, None])
    return places.view(np.int64)


def _both(first: Captured, second: Captured) -> Captured:
    """Returns one graph that computes what two do, each from inputs of its own."""
    root, graph = nn.Module(), fx.Graph()
    info: list[tuple[Any, Any]] = []
    held: dict[str, fx.Node] = {}
    outputs: list[Any] = []
    for number, captured in enumerate((first, second)):
        copies: dict[fx.Node, fx.Node] = {}
        for node in captured.module.graph.nodes:
            if node.op == "output":
                outputs += fx.node.map_arg(node.args[0], copies.__getitem__)
                continue
            if node.op == "get_attr" and node.target in held:
                copies[node] = held[str(node.target)]
                continue
            copy = graph.node_copy(node, copies.__getitem__)
            if node.op == "get_attr":
                own = node.target in captured.persistent
                copy.target = node.target if own else f"{str(node.target).replace('.', '_')}_{number}"
                place(root, str(copy.target), fetch(captured.module, str(node.target)), persistent=own)
                if own:
                    held[str(node.target)] = copy
            elif node.op == "placeholder":
                copy.target = copy.name
            copies[node] = copy
            info.append((captured.info.get(node), captured.at_example.get(node)))
    graph.output(tuple(outputs))
    module = fx.GraphModule(root, graph)
    nodes = list(module.graph.nodes)
    free, fixed = zip(*info, (None, None), strict=True)
    return replace(
        first,
        module=module,
        info=dict(zip(nodes, free, strict=True)),
        at_example=dict(zip(nodes, fixed, strict=True)),
        persistent=first.persistent | second.persistent,
        example=(*first.example, *second.example),
    )

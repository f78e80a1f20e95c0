"""The result of coupling: every value's labels, the units and groups, what is frozen and why."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from torch import fx

from fxprune._base.shown import html_summary, text_summary
from fxprune.algebra import axes as ax
from fxprune.algebra.axes import Axes
from fxprune.algebra.channels import Channels, Ids, Mask
from fxprune.capturing.captured import Captured, stays_in_place
from fxprune.coupling.units import Group, ParameterAxis
from fxprune.ops.slicer import Slicer
from fxprune.ops.tracer import Contraction
from fxprune.results.tables import few

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True, slots=True)
class Frozen:
    """Coordinates of a parameter axis that can never go."""

    tensor: str
    dim: int
    coordinates: int
    size: int
    reason: str


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Coupling:
    """What `couple` found; plain data, the graph is untouched.

    Attributes:
        captured: the graph it is about.
        channels: the store of channel ids.
        values: node -> its axes.
        edges: (reader, value) -> the axes that a reader takes of a value that depends on no parameter.
        notes: node -> axes that its rules keep.
        contractions: every sum of products.
        statistics: nodes that take a statistic over an axis that may shrink.
        least: (axis, count): an op is undefined with fewer coordinates of that axis.
        axes: every axis of every parameter and persistent buffer, labels resolved.
        units: the channel id of each unit.
        groups: the units by group.
        unsupported: (op, where) of each op that has no rule and froze something.
    """

    captured: Captured
    channels: Channels
    values: dict[fx.Node, Any]
    edges: dict[tuple[fx.Node, fx.Node], Axes]
    notes: dict[fx.Node, dict[str, ax.Axis]]
    contractions: tuple[Contraction, ...]
    statistics: frozenset[fx.Node]
    least: tuple[tuple[ax.Axis, int], ...]
    axes: tuple[ParameterAxis, ...]
    units: Ids
    groups: tuple[Group, ...]
    unsupported: tuple[tuple[str, str], ...]
    _frozen: list[Frozen] = field(default_factory=list)

    def removed_mask(self, units: Iterable[int]) -> Mask:
        """Returns a flag for each channel id, ``[channels]``, set for the channels of these units."""
        flags = np.zeros(len(self.channels), bool)
        flags[self.units[np.fromiter(units, np.int64)]] = True
        return flags

    def units_of(self, removed: Mask) -> Ids:
        """Returns the numbers of the units whose channels are flagged, ``[gone]`` for ``[channels]``."""
        units: Ids = np.flatnonzero(removed[self.units])
        return units

    def parameter(self, name: str) -> Axes:
        """Returns the axes of a parameter or persistent buffer."""
        node = next(n for n in self.values if n.op == "get_attr" and n.target == name)
        axes: Axes = self.values[node]
        return axes

    def slicer(self, removed: Mask) -> Slicer:
        """Returns what slice and twin rules ask for the sizes that are left; ``removed`` is ``[channels]``."""
        return Slicer(self.channels, self.values, self.edges, self.notes, self.captured.info, removed)

    def frozen(self) -> list[Frozen]:
        """Returns every parameter axis with coordinates that can never go, and the reason."""
        if not self._frozen:
            self._frozen.extend(_frozen(self))
        return self._frozen

    def explain(self, layer: str) -> str:
        """Returns, as text, what couples a layer's parameters and what holds them (``fnmatch`` patterns allowed)."""
        chosen = [a for a in self.axes if fnmatch.fnmatchcase(a.layer, layer) or fnmatch.fnmatchcase(a.tensor, layer)]
        if not chosen:
            return f"{layer}: no parameter of that name is in the graph"
        frozen = {(f.tensor, f.dim): f for f in self.frozen()}
        lines = []
        for axis in chosen:
            lines.append(f"{axis.tensor} axis {axis.dim} ({len(axis.labels)})")
            here = np.unique(axis.labels)
            for group in self.groups:
                count = int(np.isin(self.units[group.units], here).sum())
                if count:
                    makers, readers = few(group.producers) or "-", few(group.consumers) or "-"
                    lines.append(f"  {count} units of {group.name}: made by {makers}; read by {readers}")
            if held := frozen.get((axis.tensor, axis.dim)):
                lines.append(f"  {held.coordinates} of {held.size} frozen: {held.reason}")
            if lines[-1].startswith(axis.tensor):
                lines.append("  no units: all of it stays")
        return "\n".join(lines)

    def __str__(self) -> str:
        """Returns a stable text form: one line a group, then what is frozen."""
        lines = [f"{len(self.groups)} groups, {len(self.units)} units"]
        for group in self.groups:
            parts = ", ".join(f"{self.axes[i].tensor}[{self.axes[i].dim}]x{count}" for i, count in group.axes)
            lines.append(f"{group.name}: {len(group.units)} {group.kind} units on {parts}")
        lines += [f"frozen {f.tensor}[{f.dim}]: {f.coordinates}/{f.size}, {f.reason}" for f in self.frozen()]
        return "\n".join(lines)

    def __repr__(self) -> str:
        """Returns how many groups there are, and a line for each."""
        lines = (f"{g.name}: {len(g.units)} {g.kind} units, made by {few(g.producers, 2) or '-'}" for g in self.groups)
        return text_summary(f"fxprune.Coupling: {len(self.groups)} groups, {len(self.units):,} units", lines)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Says what can be kept instead.

        Raises:
            FxpruneError: always.
        """
        raise stays_in_place(self)

    def _repr_html_(self) -> str:
        rows = [(g.name, g.kind, len(g.units), few(g.producers, 3), few(g.consumers, 3)) for g in self.groups]
        facts = [("units", f"{len(self.units):,}"), ("axes with frozen coordinates", len(self.frozen()))]
        return html_summary("fxprune.Coupling", facts, ("group", "kind", "units", "made by", "read by"), rows)

    def to_networkx(self) -> nx.Graph[str]:
        """Returns a bipartite graph of groups and parameter axes, edges weighted by coordinates a unit."""
        import networkx as nx

        graph: nx.Graph[str] = nx.Graph()
        for axis in self.axes:
            graph.add_node(f"{axis.tensor}[{axis.dim}]", kind="axis", size=len(axis.labels))
        for group in self.groups:
            graph.add_node(group.name, kind=group.kind, units=len(group.units))
            for index, count in group.axes:
                axis = self.axes[index]
                graph.add_edge(group.name, f"{axis.tensor}[{axis.dim}]", coordinates=count)
        return graph


def _frozen(coupling: Coupling) -> Iterable[Frozen]:
    for node, axes in coupling.values.items():
        if node.op != "get_attr" or node.target not in coupling.captured.persistent or axes is None:
            continue
        for dim, axis in enumerate(axes):
            for labels in ax.labels_of(axis):
                resolved = coupling.channels.resolve(labels)
                held = ~resolved.any(axis=1)
                if held.any():
                    reason = coupling.channels.reason(labels[held]) or "fixed"
                    if not reason.startswith("the kernel"):
                        yield Frozen(str(node.target), dim, int(held.sum()), len(labels), reason)

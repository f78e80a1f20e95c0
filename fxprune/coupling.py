"""Couple: which coordinates of which tensors must go together, and why some never can.

An abstract interpretation of the captured graph: every value's axes are labelled with channels by the rules of
`fxprune.rules`, and what is left of the labels on the parameters is what can be pruned.
"""

from __future__ import annotations

import fnmatch
import itertools
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from fxprune import axes as ax
from fxprune.axes import Axes
from fxprune.capture import Captured, TensorInfo
from fxprune.channels import KINDS, Channels, Ids, Mask
from fxprune.errors import UnsupportedOpError
from fxprune.rules.registry import bind, rule_of
from fxprune.rules.slicing import Slicer
from fxprune.rules.tracing import Contraction, Tracer


@dataclass(frozen=True, slots=True, eq=False)
class ParameterAxis:
    """One dimension of one parameter or persistent buffer: ``labels[i]`` says what coordinate i needs."""

    tensor: str
    dim: int
    labels: Ids
    is_parameter: bool

    @property
    def layer(self) -> str:
        """The name of the module that owns the tensor."""
        return self.tensor.rpartition(".")[0]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Units that compete with each other: they lie on the same parameter axes, none on another's coordinates.

    Attributes:
        name: the layer that makes them, with the kind where it is not `channel`.
        kind: `channel`, `head` or `head_dim`.
        units: unit numbers, in the order of their coordinates.
        axes: the parameter axes they lie on, as (index into ``Coupling.axes``, coordinates a unit).
        producers: the layers that make them.
        consumers: the layers that read them.
    """

    name: str
    kind: str
    units: Ids
    axes: tuple[tuple[int, int], ...]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Frozen:
    """Coordinates of a parameter axis that can never go."""

    tensor: str
    dim: int
    coordinates: int
    size: int
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
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
    axes: tuple[ParameterAxis, ...]
    units: Ids
    groups: tuple[Group, ...]
    unsupported: tuple[tuple[str, str], ...]
    _frozen: list[Frozen] = field(default_factory=list)

    def removed_mask(self, units: Iterable[int]) -> Mask:
        """Returns a flag for each channel id, set for the channels of these units."""
        flags = np.zeros(len(self.channels), bool)
        flags[self.units[np.fromiter(units, np.int64)]] = True
        return flags

    def units_of(self, removed: Mask) -> Ids:
        """Returns the numbers of the units whose channels are flagged."""
        units: Ids = np.flatnonzero(removed[self.units])
        return units

    def parameter(self, name: str) -> Axes:
        """Returns the axes of a parameter or persistent buffer."""
        node = next(n for n in self.values if n.op == "get_attr" and n.target == name)
        axes: Axes = self.values[node]
        return axes

    def slicer(self, removed: Mask) -> Slicer:
        """Returns what slice and twin rules ask for the sizes that are left."""
        return Slicer(self.channels, self.values, self.edges, self.notes, removed)

    def frozen(self) -> list[Frozen]:
        """Returns every parameter axis with coordinates that can never go, and the reason."""
        if not self._frozen:
            self._frozen.extend(_frozen(self))
        return self._frozen

    def explain(self, layer: str) -> str:
        """Returns, as text, what couples a layer's parameters and what holds them (``fnmatch`` patterns allowed)."""
        chosen = [
            a
            for a in self.axes
            if fnmatch.fnmatchcase(a.layer, layer) or fnmatch.fnmatchcase(a.tensor, layer)
        ]
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
                    makers, readers = ", ".join(group.producers) or "-", ", ".join(group.consumers) or "-"
                    lines.append(f"  {count} units of {group.name}: made by {makers}; read by {readers}")
            if held := frozen.get((axis.tensor, axis.dim)):
                lines.append(f"  {held.coordinates} of {held.size} frozen: {held.reason}")
        return "\n".join(lines)

    def __str__(self) -> str:
        """Returns a stable text form: one line a group, then what is frozen."""
        lines = [f"{len(self.groups)} groups, {len(self.units)} units"]
        for group in self.groups:
            parts = ", ".join(f"{self.axes[i].tensor}[{self.axes[i].dim}]x{count}" for i, count in group.axes)
            lines.append(f"{group.name}: {len(group.units)} {group.kind} units on {parts}")
        lines += [f"frozen {f.tensor}[{f.dim}]: {f.coordinates}/{f.size}, {f.reason}" for f in self.frozen()]
        return "\n".join(lines)

    def to_networkx(self) -> nx.Graph[str]:
        """Returns a bipartite graph of groups and parameter axes, edges weighted by coordinates a unit."""
        graph: nx.Graph[str] = nx.Graph()
        for axis in self.axes:
            graph.add_node(f"{axis.tensor}[{axis.dim}]", kind="axis", size=len(axis.labels))
        for group in self.groups:
            graph.add_node(group.name, kind=group.kind, units=len(group.units))
            for index, count in group.axes:
                axis = self.axes[index]
                graph.add_edge(group.name, f"{axis.tensor}[{axis.dim}]", coordinates=count)
        return graph


def couple(captured: Captured, *, strict: bool = False) -> Coupling:
    """Finds which coordinates of the parameters must go together.

    Args:
        captured: what `fxprune.capture` returned.
        strict: raise where an op has no rule, instead of freezing what it touches.

    Raises:
        UnsupportedOpError: under ``strict``, an op without a rule; names op, module and source line.
    """
    tracer = Tracer(captured)
    unsupported: list[tuple[str, str]] = []
    for node in captured.module.graph.nodes:
        _visit(tracer, node, strict, unsupported)
    axes = _parameter_axes(tracer)
    units, groups = _units(tracer, axes)
    return Coupling(
        captured, tracer.channels, tracer.values, tracer.edges, tracer.notes, tuple(tracer.contractions),
        frozenset(tracer.statistics), axes, units, groups, tuple(unsupported),
    )  # fmt: skip


def _visit(t: Tracer, node: fx.Node, strict: bool, unsupported: list[tuple[str, str]]) -> None:
    info = t.captured.info.get(node)
    if (
        any(source in t.bound for source in node.all_input_nodes)
        and info is not None
        and not isinstance(info, int)
    ):
        t.bound.add(node)
    if node.op == "output":
        for value in node.all_input_nodes:
            if t.is_tensor(value):
                for axis in t.values[value]:
                    t.freeze(node, axis, "the result")
    elif node.op == "placeholder":
        t.values[node] = tuple(map(ax.fixed, info.shape)) if isinstance(info, TensorInfo) else None
    elif node.op == "get_attr":
        t.values[node] = _attribute(t, node) if isinstance(info, TensorInfo) else None
    elif info is None or isinstance(info, int):
        t.values[node] = None
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) and info is None:
            _freeze_unknown(t, node, strict, unsupported)
    elif node.target is operator.getitem:
        t.values[node] = t.values[node.all_input_nodes[0]][node.args[1]]
    else:
        rule = rule_of(node.target)
        axes = rule.couple(t, node, bind(node)) if rule is not None else None
        t.values[node] = _freeze_unknown(t, node, strict, unsupported) if axes is None else axes


def _attribute(t: Tracer, node: fx.Node) -> Axes:
    """Parameters and persistent buffers start with fresh channels; constants are free."""
    info: TensorInfo = t.captured.info[node]
    if node.target not in t.captured.persistent:
        return tuple(map(ax.free, info.shape))
    if not info.dtype.is_floating_point:
        return tuple(map(ax.fixed, info.shape))
    t.bound.add(node)
    return tuple(ax.labelled(t.channels.fresh(size)) if size > 1 else ax.fixed(size) for size in info.shape)


def _freeze_unknown(t: Tracer, node: fx.Node, strict: bool, unsupported: list[tuple[str, str]]) -> Any:
    """Freezes everything that an op without a rule touches; what it makes of free values is free as well."""
    touched = False
    pure = isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.is_mutable
    make = ax.free if pure and node not in t.bound and _made_of_literals(t, node) else ax.fixed
    for source in node.all_input_nodes:
        values = t.values.get(source)
        for axes in values if isinstance(values, list) else [values]:
            for axis in axes or ():
                touched |= ax.is_labelled(axis)
                t.freeze(node, axis, "an op without a rule,")
    if touched:
        unsupported.append((str(node.target), str(node.meta.get("module", ""))))
        if strict:
            lines = [
                line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if "File" in line
            ]
            raise UnsupportedOpError(
                f"{node.target} in module {node.meta.get('module', '?')!r} ({lines[-1] if lines else 'no source line'})"
                " has no coupling rule; without strict=True everything it touches is kept as it is"
            )
    info = t.captured.info.get(node)
    if isinstance(info, TensorInfo):
        return tuple(map(make, info.shape))
    if isinstance(info, (list, tuple)):
        return [tuple(map(make, i.shape)) if isinstance(i, TensorInfo) else None for i in info]
    return None


def _made_of_literals(t: Tracer, node: fx.Node) -> bool:
    """Whether all operands are free in every dimension, sizes of one aside."""
    info = t.captured.info
    tensors = [source for source in node.all_input_nodes if not isinstance(info.get(source), int)]
    known = [t.values.get(source) for source in tensors if info.get(source) is not None]
    return all(isinstance(axes, tuple) and all(not a or ax.is_free(a) for a in axes) for axes in known)


def _parameter_axes(t: Tracer) -> tuple[ParameterAxis, ...]:
    found = []
    for node, axes in t.values.items():
        if node.op != "get_attr" or node not in t.bound:
            continue
        is_parameter = isinstance(attribute(t.captured.module, str(node.target)), torch.nn.Parameter)
        for dim, axis in enumerate(axes):
            found += [
                ParameterAxis(str(node.target), dim, t.channels.resolve(labels), is_parameter)
                for labels in ax.labels_of(axis)
            ]
    return tuple(found)


def attribute(module: torch.nn.Module, name: str) -> Any:
    """Returns the tensor at a dotted name."""
    return operator.attrgetter(name)(module)


def _units(t: Tracer, axes: Sequence[ParameterAxis]) -> tuple[Ids, tuple[Group, ...]]:
    """Returns the channel id of each unit, and the units by group."""
    ids, axis_of = _incidence(axes)
    on_parameter = np.array([a.is_parameter for a in axes], bool)
    units = np.unique(ids[on_parameter[axis_of]]) if len(ids) else ids
    unit_of = np.full(len(t.channels), -1, np.int64)
    unit_of[units] = np.arange(len(units))
    unit = unit_of[ids]
    axis_of, unit = axis_of[unit >= 0], unit[unit >= 0]
    pairs, counts = np.unique(unit * len(axes) + axis_of, return_counts=True)
    pair_unit, pair_axis = pairs // max(len(axes), 1), pairs % max(len(axes), 1)
    bits = (
        pair_axis.astype(np.uint64) * 0x9E3779B97F4A7C15 + counts.astype(np.uint64) * 0xC2B2AE3D27D4EB4F
    ) | 1
    bits ^= bits >> np.uint64(29)
    keys = np.zeros(len(units), np.uint64)
    np.add.at(keys, pair_unit, bits * np.uint64(0xBF58476D1CE4E5B9))
    kinds = t.channels.kinds()[units]
    keys += kinds.astype(np.uint64) * np.uint64(0xD6E8FEB86659FD93)
    _, group_of = np.unique(keys, return_inverse=True)
    merged = _merge_groups(t, axes, group_of, kinds, (pair_unit, pair_axis, counts))
    groups = _apart(axes, unit_of, merged)
    return units, _describe(t, axes, groups, kinds, (pair_unit, pair_axis, counts))


def _incidence(axes: Sequence[ParameterAxis]) -> tuple[Ids, Ids]:
    """Returns (channel id, axis index) of every label on every parameter axis."""
    labels = [axis.labels[axis.labels > 0] for axis in axes]
    ids = np.concatenate([np.zeros(0, np.int64), *labels])
    return ids, np.repeat(np.arange(len(axes)), [len(part) for part in labels])


def _contracted(t: Tracer) -> set[tuple[str, int]]:
    """Returns the (weight, dim) over which contractions sum: the readers of channels."""
    return {(str(c.weight.target), c.weight_dim) for c in t.contractions if c.weight is not None and c.axis}


def _merge_groups(
    t: Tracer, axes: Sequence[ParameterAxis], group_of: Ids, kinds: npt.NDArray[np.int8],
    pairs: tuple[Ids, Ids, Ids],
) -> Ids:  # fmt: skip
    """Joins groups that one layer makes: same kind and coordinates a unit, and none on another's coordinates."""
    readers = _contracted(t)
    merged: nx.utils.UnionFind[int] = nx.utils.UnionFind(range(int(group_of.max(initial=-1)) + 1))
    pair_unit, pair_axis, counts = pairs
    made = np.array(
        [
            (a.tensor, a.dim) not in readers
            and a.is_parameter
            # where some coordinate belongs to two units, they are of different kinds
            and (a.labels > 0).sum(axis=1).max(initial=0) <= 1
            for a in axes
        ],
        bool,
    )
    here = made[pair_axis] if len(axes) else np.zeros(0, bool)
    units = pair_unit[here]
    makers = _distinct(pair_axis[here], counts[here], kinds[units], group_of[units])
    cuts = np.flatnonzero((np.diff(makers[:3], axis=1) != 0).any(axis=0)) + 1
    for members in np.split(makers[3], cuts):
        merged.union(*members.tolist())
    roots = np.array([merged[g] for g in range(int(group_of.max(initial=-1)) + 1)], np.int64)
    joined: Ids = roots[group_of]
    return joined


def _apart(axes: Sequence[ParameterAxis], unit_of: Ids, group_of: Ids) -> Ids:
    """Splits every group in which one unit lies on another's coordinates: the rows and columns of a square."""
    beside: dict[int, set[int]] = {}
    for axis in axes:
        units = np.where(axis.labels > 0, unit_of[axis.labels], -1)
        for i, j in itertools.combinations(range(units.shape[1]), 2):
            pairs = units[:, [i, j]]
            pairs = pairs[(pairs >= 0).all(axis=1)]
            pairs = pairs[group_of[pairs[:, 0]] == group_of[pairs[:, 1]]]
            for a, b in np.unique(pairs, axis=0).tolist():
                beside.setdefault(a, set()).add(b)
                beside.setdefault(b, set()).add(a)
    colour: dict[int, int] = {}
    for unit in sorted(beside):
        taken = {colour.get(other) for other in beside[unit]}
        colour[unit] = next(c for c in itertools.count() if c not in taken)
    split = group_of.copy()
    for unit, c in colour.items():
        split[unit] += c * (int(group_of.max()) + 1)
    return split


def _describe(
    t: Tracer, axes: Sequence[ParameterAxis], group_of: Ids, kinds: npt.NDArray[np.int8],
    pairs: tuple[Ids, Ids, Ids],
) -> tuple[Group, ...]:  # fmt: skip
    readers = _contracted(t)
    pair_unit, pair_axis, counts = pairs
    order = np.argsort(group_of, kind="stable")
    members = {int(group_of[part[0]]): part for part in np.split(order, _cuts(group_of[order])) if len(part)}
    rows = _distinct(group_of[pair_unit], pair_axis, counts)
    touched = {int(part[0, 0]): part[1:] for part in np.split(rows, _cuts(rows[0]), axis=1) if part.size}
    groups: list[Group] = []
    names: dict[str, int] = {}
    for key, units in sorted(members.items(), key=lambda item: int(item[1][0])):
        lies_on = [(index, count) for index, count in touched[key].T.tolist()]
        on = [axes[i] for i, _ in lies_on]
        makers = tuple(
            dict.fromkeys(a.layer for a in on if (a.tensor, a.dim) not in readers and a.is_parameter)
        )
        takers = tuple(dict.fromkeys(a.layer for a in on if (a.tensor, a.dim) in readers))
        kind = KINDS[int(kinds[units[0]])]
        name = next((layer for layer in (*makers, *takers) if layer), on[0].tensor) + (
            "" if kind == "channel" else f":{kind}"
        )
        names[name] = names.get(name, 0) + 1
        name += "" if names[name] == 1 else f"#{names[name]}"
        groups.append(Group(name, kind, units, tuple(lies_on), makers, takers))
    return tuple(groups)


def _distinct(*columns: Ids) -> Ids:
    """Returns the distinct tuples of some columns of numbers, in order, ``[columns, tuples]``."""
    sizes = tuple(int(column.max(initial=0)) + 1 for column in columns)
    packed = np.unique(np.ravel_multi_index([column.astype(np.int64) for column in columns], sizes))
    return np.stack(np.unravel_index(packed, sizes))


def _cuts(keys: Ids) -> Ids:
    cuts: Ids = np.flatnonzero(np.diff(keys)) + 1
    return cuts


def _frozen(coupling: Coupling) -> Iterable[Frozen]:
    for node, axes in coupling.values.items():
        if node.op != "get_attr" or node.target not in coupling.captured.persistent or axes is None:
            continue
        for dim, axis in enumerate(axes):
            for labels in ax.labels_of(axis):
                resolved = coupling.channels.resolve(labels)
                held = ~resolved.any(axis=1) if resolved.shape[1] else np.ones(len(labels), bool)
                if held.any():
                    reason = coupling.channels.reason(labels[held]) or "fixed"
                    if not reason.startswith("the kernel"):
                        yield Frozen(str(node.target), dim, int(held.sum()), len(labels), reason)

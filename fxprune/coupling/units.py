"""Units and groups: what scoring and solving work on.

A unit is one channel that lies on some parameter; units that compete with each other form a group.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fxprune._base.names import layer_of
from fxprune.algebra.channels import KINDS, Channels, Ids


@dataclass(frozen=True, slots=True, eq=False)
class ParameterAxis:
    """One dimension of one parameter or persistent buffer.

    Attributes:
        tensor: its name.
        dim: which of its dimensions.
        labels: ``labels[i]`` says what coordinate i needs.
        is_parameter: False for a buffer.
        reads: a contraction sums over it: the layer reads these channels.
        makes: a weight's dimension that none sums over: the layer makes these channels.
    """

    tensor: str
    dim: int
    labels: Ids
    is_parameter: bool
    reads: bool
    makes: bool

    @property
    def layer(self) -> str:
        """The name of the module that owns the tensor."""
        return layer_of(self.tensor)


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Units that compete with each other: they lie on the same parameter axes, none on another's coordinates.

    Attributes:
        name: the layer that makes them, with the kind where it is not `channel`.
        kind: `channel`, `head`, `kv_group`, `head_dim`, `expert` or `block`.
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


def form_groups(channels: Channels, axes: Sequence[ParameterAxis]) -> tuple[Ids, tuple[Group, ...]]:
    """Returns the channel id of each unit, ``[units]``, and the units by group."""
    ids, axis_of = _incidence(axes)
    on_parameter = np.array([a.is_parameter for a in axes], bool)
    units = np.unique(ids[on_parameter[axis_of]]) if len(ids) else ids
    unit_of = np.full(len(channels), -1, np.int64)
    unit_of[units] = np.arange(len(units))
    unit = unit_of[ids]
    axis_of, unit = axis_of[unit >= 0], unit[unit >= 0]
    pairs, counts = np.unique(unit * len(axes) + axis_of, return_counts=True)
    pair_unit, pair_axis = pairs // max(len(axes), 1), pairs % max(len(axes), 1)
    bits = (pair_axis.astype(np.uint64) * 0x9E3779B97F4A7C15 + counts.astype(np.uint64) * 0xC2B2AE3D27D4EB4F) | 1
    bits ^= bits >> np.uint64(29)
    keys = np.zeros(len(units), np.uint64)
    np.add.at(keys, pair_unit, bits * np.uint64(0xBF58476D1CE4E5B9))
    kinds = channels.kinds()[units]
    kinds[_of_several_heads(axes, unit_of, kinds)] = KINDS.index("kv_group")
    keys += kinds.astype(np.uint64) * np.uint64(0xD6E8FEB86659FD93)
    _, group_of = np.unique(keys, return_inverse=True)
    merged = _merge_groups(channels, axes, group_of, kinds, (pair_unit, pair_axis, counts))
    groups = _apart(axes, unit_of, merged)
    return units, _describe(axes, groups, kinds, (pair_unit, pair_axis, counts))


def _of_several_heads(
    axes: Sequence[ParameterAxis], unit_of: Ids, kinds: npt.NDArray[np.int8]
) -> npt.NDArray[np.bool_]:
    """Returns which units are a key and value head with all the query heads that share it.

    Their coordinates in the queries belong to a head of each group as well; those in the keys and values to them alone.
    """
    alone, shared = np.zeros((2, len(kinds)), bool)
    is_head = np.append(kinds == KINDS.index("head"), False)
    for axis in axes:
        owners = np.where(axis.labels > 0, unit_of[axis.labels], -1)
        heads = is_head[owners]
        several = heads.sum(axis=1) > 1
        shared[owners[heads & several[:, None]]] = True
        alone[owners[heads & ~several[:, None]]] = True
    return alone & shared


def _incidence(axes: Sequence[ParameterAxis]) -> tuple[Ids, Ids]:
    """Returns (channel id, axis index) of every label on every parameter axis."""
    labels = [axis.labels[axis.labels > 0] for axis in axes]
    ids = np.concatenate([np.zeros(0, np.int64), *labels])
    return ids, np.repeat(np.arange(len(axes)), [len(part) for part in labels])


def _merge_groups(
    channels: Channels,
    axes: Sequence[ParameterAxis],
    group_of: Ids,
    kinds: npt.NDArray[np.int8],
    pairs: tuple[Ids, Ids, Ids],
) -> Ids:
    """Joins groups that one layer makes: same kind and coordinates a unit, and none on another's coordinates."""
    import networkx as nx

    merged: nx.utils.UnionFind[int] = nx.utils.UnionFind(range(int(group_of.max(initial=-1)) + 1))
    pair_unit, pair_axis, counts = pairs
    block = KINDS.index("block")
    of_kind = channels.kinds()
    of_kind[0] = block
    made = np.array(
        [
            a.makes
            # where some coordinate belongs to two units, they are of different kinds; a block counts for nothing here
            and (of_kind[a.labels] != block).sum(axis=1).max(initial=0) <= 1
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
    """Splits every group in which some units lie on others' coordinates: the rows and the columns of a square.

    Where every unit lies on every other's coordinates (a Gram matrix of one layer) there are no such parts.
    """
    beside = _overlaps(axes, unit_of, group_of)
    colour: dict[int, int] = {}
    for unit in sorted(beside):
        taken = {colour.get(other) for other in beside[unit]}
        colour[unit] = next(c for c in itertools.count() if c not in taken)
    split = group_of.copy()
    step = int(group_of.max(initial=0)) + 1
    for group in {int(group_of[unit]) for unit in colour}:
        members = [unit for unit in colour if group_of[unit] == group]
        if max(colour[unit] for unit in members) + 1 < len(members):
            for unit in members:
                split[unit] += colour[unit] * step
    return split


def _overlaps(axes: Sequence[ParameterAxis], unit_of: Ids, group_of: Ids) -> dict[int, set[int]]:
    """Returns for each unit those of its group with which it shares a coordinate."""
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
    return beside


def _describe(
    axes: Sequence[ParameterAxis], group_of: Ids, kinds: npt.NDArray[np.int8], pairs: tuple[Ids, Ids, Ids]
) -> tuple[Group, ...]:
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
        makers = tuple(dict.fromkeys(a.layer for a in on if a.is_parameter and not a.reads))
        takers = tuple(dict.fromkeys(a.layer for a in on if a.reads))
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

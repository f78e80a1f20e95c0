"""The axes of the tensors in the original's forward, and how large they are once channels are gone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, fx

from fxprune.algebra.axes import Axis, explicit, fixed, is_labelled, labelled, size_of
from fxprune.algebra.channels import Ids
from fxprune.capturing.captured import TensorInfo
from fxprune.coupling.coupling import Coupling
from fxprune.homing.matching import Value
from fxprune.ops.registry import is_kind
from fxprune.ops.slicer import Slicer

#: For each dimension the axes that it is at once: mostly one.
Dims: TypeAlias = tuple[tuple[Axis, ...], ...]


class Dimensions:
    """Tells the axes of the values of a graph.

    What depends on no parameter (a table of positions, a first state of zeros) has the axes that its readers take; where these
    differ, the class keeps as many of each.
    """

    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        self.nodes = {node.name: node for node in coupling.values}
        self.asked = _asked(coupling)

    def of(self, value: Value) -> Dims | None:
        """Returns the axes of a value, None if nothing is known of them."""
        node = self.nodes[value.node]
        axes = self.coupling.values[node]
        axes = axes if value.part is None or axes is None else axes[value.part]
        if axes is None:
            return None
        asked = self.asked.get(node, {})
        return tuple(tuple(asked.get(dim, (axis,))) for dim, axis in enumerate(axes))

    def cut(self) -> dict[str, dict[int, list[Axis]]]:
        """Returns what readers take of the dimensions of values that depend on no parameter, by the value's name.

        A buffer of which all readers take the same is not among them: it can be cut itself.
        """
        return {
            node.name: {dim: axes for dim, axes in dims.items() if node.op != "get_attr" or len(axes) > 1}
            for node, dims in self.asked.items()
        }

    def of_buffers(self, slicer: Slicer) -> dict[str, dict[int, Ids]]:
        """Returns what is left of each dimension of the buffers of which all readers take the same, ``[kept]``, by name."""
        return {
            str(node.target): {d: slicer.index(axes[0]) for d, axes in dims.items() if len(axes) == 1}
            for node, dims in self.asked.items()
            if node.op == "get_attr"
        }

    def moved(self, dims: Dims, shape: Sequence[int], index: Tensor) -> Dims:
        """Returns the axes of a tensor that is made of the elements of another.

        Args:
            dims: of the other.
            shape: of the other, at the example.
            index: for each element its number in the other, ``[...]``.
        """
        rows, places = self._rows([axes[0] for axes in dims], shape)
        where, sizes = places[index.numpy()], index.shape
        for dim in range(index.dim()):  # along most of them, such as the batch, all labels are the same
            first = where[(slice(None),) * dim + (slice(0, 1),)]
            if where.size and (first == where).all():
                where = first
        found = rows[where]
        owners = _owners(found)
        return tuple(
            (fixed(size),) if found.shape[dim] < size else _along(found, dim, owners) for dim, size in enumerate(sizes)
        )

    def _rows(self, axes: Sequence[Axis], shape: Sequence[int]) -> tuple[Ids, Ids]:
        """Returns the labels of all places that differ in them, ``[places, k]``, and the place of each element, ``[elements]``."""
        columns: list[Ids] = []
        known = [self._labels(axis, size) for axis, size in zip(axes, shape, strict=True)]
        small = [1 if labels is None else len(labels) for labels in known]
        for dim, labels in enumerate(known):
            if labels is not None:
                spread = labels.reshape([len(labels) if d == dim else 1 for d in range(len(shape))] + [labels.shape[1]])
                columns.append(np.broadcast_to(spread, (*small, labels.shape[1])).reshape(-1, labels.shape[1]))
        rows = np.concatenate(columns, axis=1) if columns else np.zeros((1, 0), np.int64)
        places = np.arange(len(rows)).reshape(small) if columns else np.zeros(small, np.int64)
        return rows, np.broadcast_to(places, tuple(shape)).reshape(-1)

    def _labels(self, axis: Axis, size: int) -> Ids | None:
        """Returns the labels of an axis at the example, ``[size, k]``; None where it has none, or none that can be told."""
        labels = explicit(axis) if is_labelled(axis) else None
        if labels is None or len(labels) != size:
            return None
        labels = self.coupling.channels.resolve(labels)
        return labels if labels.size else None


def left(slicer: Slicer, axis: Axis, size: int) -> int:
    """Returns what becomes of ``size``, that of an axis at the example."""
    whole = size_of(axis)
    return size * slicer.count(axis) // whole if whole else size


def left_before(slicer: Slicer, axis: Axis, position: int) -> int:
    """Returns how many coordinates are left of the first ``position`` of an axis; of one below 0, how far it is from the end."""
    if not slicer.changed(axis):
        return position
    if position < 0:
        return slicer.kept_before(axis, size_of(axis) + position) - slicer.count(axis)
    return slicer.kept_before(axis, position)


def _owners(found: Ids) -> list[int]:
    """Returns for each column of labels the dimension that it tells apart most: of ``[3, heads, head_dim]`` the heads, or the width."""
    dims, owners = found.ndim - 1, []
    for column in np.moveaxis(found, -1, 0):
        lines = [np.moveaxis(column, dim, 0).reshape(column.shape[dim], -1)[:, 0] for dim in range(dims)]
        distinct = [len(np.unique(line)) for line in lines]
        owners.append(max(range(dims), key=lambda dim: (distinct[dim], dim)) if max(distinct, default=1) > 1 else -1)
    return owners


def _along(found: Ids, dim: int, owners: Sequence[int]) -> tuple[Axis, ...]:
    """Returns the axes of one dimension: of each place beside it the labels that tell it apart; alike ones once.

    Of ``[3, heads, head_dim]`` made of queries, keys and values along the heads: those of the queries and of the values.
    """
    size, columns = found.shape[dim], [k for k, owner in enumerate(owners) if owner == dim]
    if not found.size or not columns:
        return (fixed(size),)
    own = np.moveaxis(found[..., columns], dim, 0).reshape(size, -1, len(columns))
    patterns = np.unique(np.moveaxis(own, 1, 0).reshape(own.shape[1], -1), axis=0).reshape(-1, size, len(columns))
    return tuple(labelled(rows) if rows.any() else fixed(size) for rows in patterns)


def _asked(coupling: Coupling) -> dict[fx.Node, dict[int, list[Axis]]]:
    """Returns the different axes that readers take of values that depend on no parameter, and of what those are made of."""
    found: dict[fx.Node, dict[int, dict[Any, Axis]]] = {}
    for (_, value), axes in coupling.edges.items():
        for dim, axis in enumerate(axes):
            if is_labelled(axis):
                found.setdefault(value, {}).setdefault(dim, {})[_key(coupling, axis)] = axis
    for node in reversed(list(coupling.values)):
        sources = node.all_input_nodes if node in found and is_kind(node, "elementwise", "addition") else ()
        for source in (source for source in sources if source.op != "placeholder"):
            for dim, before in _aligned(coupling.captured.info, node, source):
                for key, axis in found[node].get(dim, {}).items():
                    found.setdefault(source, {}).setdefault(before, {})[key] = axis
    return {node: {dim: list(axes.values()) for dim, axes in dims.items()} for node, dims in found.items()}


def _key(coupling: Coupling, axis: Axis) -> tuple[Any, ...]:
    resolve = coupling.channels.resolve
    return tuple((f.size, None if f.labels is None else resolve(f.labels).tobytes()) for f in axis)


def _aligned(info: dict[fx.Node, Any], node: fx.Node, source: fx.Node) -> list[tuple[int, int]]:
    """Returns the dimensions of a value and of one that it is made of that are the same, not broadcast."""
    here, before = info.get(node), info.get(source)
    if not isinstance(here, TensorInfo) or not isinstance(before, TensorInfo):
        return []
    more = len(here.shape) - len(before.shape)
    return [(d + more, d) for d, size in enumerate(before.shape) if here.shape[d + more] == size]


def numbered(shape: Sequence[int]) -> Tensor:
    """Returns the number of each element of a tensor of a shape, ``[*shape]``."""
    return torch.arange(int(np.prod(shape, dtype=np.int64))).reshape(tuple(shape))

"""The axes of the tensors in the original's forward, and how large they are once channels are gone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxprune.algebra.axes import EXPLICIT_LIMIT, Axes, Axis, explicit, fixed, is_labelled, labelled, size_of
from fxprune.algebra.channels import Ids
from fxprune.capturing.captured import TensorInfo
from fxprune.coupling.coupling import Coupling
from fxprune.homing.matching import Value
from fxprune.ops.slicer import Slicer


class Dimensions:
    """Tells the axes of the values of a graph.

    What depends on no parameter (a table of positions, a first state of zeros) has the axes that all its readers take.
    """

    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        self.nodes = {node.name: node for node in coupling.values}
        self.taken = _taken(coupling)

    def of(self, value: Value) -> Axes | None:
        """Returns the axes of a value, None if nothing is known of them."""
        node = self.nodes[value.node]
        axes = self.coupling.values[node]
        axes = axes if value.part is None or axes is None else axes[value.part]
        if axes is None:
            return None
        taken = self.taken.get(node, {})
        return tuple(taken.get(dim, axis) for dim, axis in enumerate(axes))

    def moved(self, axes: Axes, shape: Sequence[int], index: Tensor) -> Axes | None:
        """Returns the axes of a tensor that is made of the elements of another.

        Args:
            axes: of the other.
            shape: of the other, at the example.
            index: for each element its number in the other, ``[...]``.
        """
        rows = self._rows(axes, shape)
        if rows is None:
            return tuple(fixed(size) for size in index.shape)
        found = rows[index.numpy()]
        return tuple(_along(found, dim) for dim in range(index.dim()))

    def _rows(self, axes: Axes, shape: Sequence[int]) -> Ids | None:
        """Returns the labels of each element, ``[elements, k]``."""
        columns: list[Ids] = []
        total = int(np.prod(shape, dtype=np.int64))
        if not 0 < total <= EXPLICIT_LIMIT:
            return None
        for dim, (axis, size) in enumerate(zip(axes, shape, strict=True)):
            if not is_labelled(axis):
                continue
            labels = explicit(axis)
            if labels is None or len(labels) != size:
                return None
            if not labels.size:
                continue
            labels = self.coupling.channels.resolve(labels)
            spread = labels.reshape([size if d == dim else 1 for d in range(len(shape))] + [labels.shape[1]])
            columns.append(np.broadcast_to(spread, (*shape, labels.shape[1])).reshape(total, labels.shape[1]))
        return np.concatenate(columns, axis=1) if columns else None


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


def _along(found: Ids, dim: int) -> Axis:
    """Returns the axis of one dimension: the labels of a coordinate are those that all its elements have."""
    size = found.shape[dim]
    if not found.size:
        return fixed(size)
    slices = np.moveaxis(found, dim, 0).reshape(size, -1, found.shape[-1])
    first = slices[:, 0]
    common = np.stack([(slices == first[:, None, k, None]).any(axis=2).all(axis=1) for k in range(first.shape[1])], 1)
    rows = np.where(common, first, 0)
    return labelled(rows) if rows.any() else fixed(size)


def _taken(coupling: Coupling) -> dict[fx.Node, dict[int, Axis]]:
    """Returns the axes that all readers take of values that depend on no parameter, and of what those are made of."""
    asked: dict[fx.Node, dict[int, list[Axis]]] = {}
    for (_, value), axes in coupling.edges.items():
        for dim, axis in enumerate(axes):
            if is_labelled(axis):
                asked.setdefault(value, {}).setdefault(dim, []).append(axis)
    found: dict[fx.Node, dict[int, Axis]] = {}
    for node in reversed(list(coupling.values)):
        for dim, several in asked.get(node, {}).items():
            if len({_key(coupling, axis) for axis in several}) == 1:
                found.setdefault(node, {})[dim] = several[0]
        for source in node.all_input_nodes if node in found else ():
            if source.op != "placeholder" and _alike(coupling.captured.info, node, source):
                for dim, axis in found[node].items():
                    asked.setdefault(source, {}).setdefault(dim, []).append(axis)
    return found


def _key(coupling: Coupling, axis: Axis) -> tuple[Any, ...]:
    resolve = coupling.channels.resolve
    return tuple((f.size, None if f.labels is None else resolve(f.labels).tobytes()) for f in axis)


def _alike(info: dict[fx.Node, Any], a: fx.Node, b: fx.Node) -> bool:
    one, other = info.get(a), info.get(b)
    return isinstance(one, TensorInfo) and isinstance(other, TensorInfo) and one.shape == other.shape


def numbered(shape: Sequence[int]) -> Tensor:
    """Returns the number of each element of a tensor of a shape, ``[*shape]``."""
    return torch.arange(int(np.prod(shape, dtype=np.int64))).reshape(tuple(shape))

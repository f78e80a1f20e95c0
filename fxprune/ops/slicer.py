"""What slice rules work with: kept counts and positions of axes, and edits of an op's arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import fx

from fxprune.algebra.axes import Axes, Axis, Factor, in_parts, is_labelled, keep_mask, size_of
from fxprune.algebra.channels import Channels, Ids, Mask


@dataclass(frozen=True, slots=True)
class Scaled:
    """A run-time size that changes by a known ratio: ``node * numerator // denominator``."""

    node: fx.Node
    numerator: int
    denominator: int


@dataclass(frozen=True, slots=True)
class Edit:
    """New arguments of an op, by schema name; ``target`` where another op has to do the work."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    target: Any = None


@dataclass(eq=False)
class Slicer:
    """Answers how much of an axis is left once the channels flagged in ``removed``, ``[channels]``, are gone."""

    channels: Channels
    values: Mapping[fx.Node, Any]
    edges: Mapping[tuple[fx.Node, fx.Node], Axes]
    notes: Mapping[fx.Node, Mapping[str, Axis]]
    info: Mapping[fx.Node, Any]
    removed: Mask
    _masks: dict[int, tuple[Factor, Mask]] = field(default_factory=dict)

    def axes(self, node: fx.Node, reader: fx.Node | None = None) -> Axes:
        """Returns the axes of a value, as ``reader`` sees it if one is given."""
        axes: Axes = self.values[node]
        return axes if reader is None else self.edges.get((reader, node), axes)

    def noted(self, node: fx.Node, name: str) -> Axis:
        """Returns an axis that the op's couple rule kept."""
        return self.notes[node][name]

    def _mask(self, factor: Factor) -> Mask | None:
        """Returns which coordinates of a factor stay; None means all of them."""
        if factor.labels is None:
            return None
        if id(factor) not in self._masks:
            self._masks[id(factor)] = (factor, keep_mask(self.channels.resolve(factor.labels), self.removed))
        return self._masks[id(factor)][1]

    def mask(self, axis: Axis) -> Mask | None:
        """Returns which coordinates of an axis stay, ``[size]``; None means all of them."""
        masks = [self._mask(factor) for factor in axis]
        if all(mask is None or mask.all() for mask in masks):
            return None
        whole = np.ones(1, bool)
        for factor, mask in zip(axis, masks, strict=True):
            whole = np.logical_and.outer(whole, np.ones(factor.size, bool) if mask is None else mask).reshape(-1)
        return whole

    def changed(self, axis: Axis) -> bool:
        """Returns whether the axis loses anything."""
        return any(mask is not None and not mask.all() for mask in map(self._mask, axis))

    def count(self, axis: Axis) -> int:
        """Returns how many coordinates stay."""
        masks = [(factor, self._mask(factor)) for factor in axis]
        return math.prod(factor.size if mask is None else int(mask.sum()) for factor, mask in masks)

    def index(self, axis: Axis) -> Ids:
        """Returns the positions that stay, ``[count]``."""
        mask = self.mask(axis)
        kept: Ids = np.arange(size_of(axis)) if mask is None else np.flatnonzero(mask)
        return kept

    def kept_before(self, axis: Axis, position: int) -> int:
        """Returns how many coordinates stay among the first ``position``."""
        mask = self.mask(axis)
        return position if mask is None else int(mask[:position].sum())

    def resize(self, size: Any, axis: Axis) -> Any:
        """Returns the literal for an axis that was ``size`` (an int, -1, or a node that gives a run-time size)."""
        if not is_labelled(axis) or not self.changed(axis):
            return size
        if not isinstance(size, fx.Node):
            return size if size == -1 else self.count(axis)
        labelled = tuple(factor for factor in axis if factor.labels is not None)
        return Scaled(size, self.count(labelled), size_of(labelled))


def sizes_of_parts(axis: Axis, size: Callable[[Axis], int]) -> list[int]:
    """Returns the sizes of an axis' parts; of the largest that stays whole -1, since it may be known only at run time."""
    parts = in_parts(axis)
    free = max((part for part in parts if not is_labelled(part)), key=size_of)
    return [-1 if part is free else size(part) for part in parts]


def noted_sizes(s: Slicer, node: fx.Node, a: SimpleNamespace) -> Edit:
    """The literals are counts of axes that the couple rule noted under the literals' names."""
    return Edit({name: s.resize(getattr(a, name), axis) for name, axis in s.notes.get(node, {}).items()})

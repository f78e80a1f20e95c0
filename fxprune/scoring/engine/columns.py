"""Coordinates and units: which columns of which layers each unit is read through, and values by coordinate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fxprune.algebra.axes import Axis, explicit, labels_of
from fxprune.algebra.channels import Ids, Mask
from fxprune.coupling.coupling import Coupling
from fxprune.recovery.consumers import Consumer


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """The columns of one linear layer or convolution that belong to a group's units, one entry for each.

    Attributes:
        consumer: the layer.
        unit: the unit's position in its group, ``[entries]``.
        group: the convolution group of the column, ``[entries]``.
        column: the column in that group's (unfolded) input, ``[entries]``.
    """

    consumer: Consumer
    unit: Ids
    group: Ids
    column: Ids


def readings_of(coupling: Coupling, consumers: Sequence[Consumer]) -> dict[str, list[Reading]]:
    """Returns for each group's name how its units are read; empty where no linear layer reads them."""
    axes = {c.node: c.axis for c in coupling.contractions if c.weight is not None}
    group_of, place = groups_of(coupling), np.zeros(len(coupling.channels), np.int64)
    for group in coupling.groups:
        place[coupling.units[group.units]] = np.arange(len(group.units))
    found: dict[str, list[Reading]] = {group.name: [] for group in coupling.groups}
    for consumer in consumers:
        labels = explicit(axes[consumer.node])
        if labels is None:
            continue
        rows = coupling.channels.resolve(labels)
        for number in set(group_of[rows].flat) - {-1}:
            at, which = np.nonzero(group_of[rows] == number)
            reading = _reading(consumer, at, place[rows[at, which]], len(rows))
            found[coupling.groups[number].name].append(reading)
    return found


def _reading(consumer: Consumer, channel: Ids, unit: Ids, channels: int) -> Reading:
    """Spreads channels over their columns: one each, or one for each position of the kernel."""
    each = channels // consumer.groups
    kernel = consumer.kept.shape[1] // each
    column = ((channel % each)[:, None] * kernel + np.arange(kernel)).reshape(-1)
    return Reading(consumer, np.repeat(unit, kernel), np.repeat(channel // each, kernel), column)


def groups_of(coupling: Coupling) -> Ids:
    """Returns the number of each channel id's group, ``[channels]``; -1 where it is no unit."""
    found = np.full(len(coupling.channels), -1, np.int64)
    for number, group in enumerate(coupling.groups):
        found[coupling.units[group.units]] = number
    return found


def flags_of(coupling: Coupling, channels: Ids) -> Mask:
    """Returns a flag for each channel id, ``[channels]``, set for these ``[n]``."""
    return np.isin(np.arange(len(coupling.channels)), channels)


def is_read(coupling: Coupling, axis: Axis) -> bool:
    """Returns whether any coordinate of an axis may go."""
    return any(coupling.channels.resolve(labels).shape[1] for labels in labels_of(axis))


def by_factor(coupling: Coupling, axis: Axis, values: Tensor) -> Iterator[tuple[Ids, Tensor]]:
    """Yields for each labelled factor its labels, ``[size, k]``, and the values summed over all other factors, ``[*, size]``.

    Args:
        coupling: resolves the labels.
        axis: what the last dimension of the values is made of.
        values: ``[*, coordinates]``.
    """
    outer, inner = 1, values.shape[-1]
    for factor in axis:
        inner //= max(factor.size, 1)
        if factor.labels is not None:
            sums = values.unflatten(-1, (outer, factor.size, inner)).sum(dim=(-3, -1))
            yield coupling.channels.resolve(factor.labels), sums
        outer *= factor.size


def table_of(owner: Ids, entry: Ids, count: int, fill: int) -> Ids:
    """Returns the entries of each owner side by side, ``[count, most]``, in their order; ``fill`` where one has fewer.

    Args:
        owner: whose each entry is, ``[entries]``, from 0.
        entry: ``[entries]``.
        count: how many owners there are.
        fill: stands for no entry.
    """
    order, sizes = np.argsort(owner, kind="stable"), np.bincount(owner, minlength=count)
    table = np.full((count, int(sizes.max(initial=0))), fill, np.int64)
    table[owner[order], np.arange(len(order)) - np.repeat(sizes.cumsum() - sizes, sizes)] = entry[order]
    return table


def wide(x: Tensor) -> Tensor:
    """Returns a tensor ``[...]`` in a precision that linear algebra works in, float32 at least."""
    return x if x.dtype.itemsize >= 4 and (x.is_floating_point() or x.is_complex()) else x.float()


def in_parts(x: Tensor) -> Tensor:
    """Returns a tensor ``[...]``, and a complex one as its real and imaginary parts, ``[..., 2]``: norms and gradients agree."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x

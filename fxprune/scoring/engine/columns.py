"""Which columns of which linear layers each unit of a group is read through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fxprune.algebra.axes import explicit
from fxprune.algebra.channels import Ids
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
    group_of = np.full(len(coupling.channels), -1, np.int64)
    place = np.zeros(len(coupling.channels), np.int64)
    for number, group in enumerate(coupling.groups):
        channels = coupling.units[group.units]
        group_of[channels], place[channels] = number, np.arange(len(channels))
    found: dict[str, list[Reading]] = {group.name: [] for group in coupling.groups}
    for consumer in consumers:
        labels = explicit(axes[consumer.node])
        if labels is None:
            continue
        rows = coupling.channels.resolve(labels)
        for number in np.unique(group_of[rows]).tolist():
            if number >= 0:
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

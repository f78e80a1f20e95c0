"""Streams: channels that lie along one dimension of many values, each a coordinate, all in the same order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import fx

from fxprune.algebra import axes as ax
from fxprune.algebra.axes import Axis
from fxprune.algebra.channels import Ids
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.units import Group


class StreamError(Exception):
    """A stream cannot be given in another basis; says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """The channels of a group, and where they lie.

    Attributes:
        name: of the group.
        size: how many channels there are.
        places: along which dimensions of each value they lie; parameters are among these.
    """

    name: str
    size: int
    places: Mapping[fx.Node, tuple[int, ...]]


def streams(coupling: Coupling, groups: Iterable[Group]) -> tuple[list[Stream], dict[str, str]]:
    """Returns those groups whose channels lie plainly wherever they are, and why the others do not, by name."""
    chosen = [group for group in groups if group.kind == "channel"]
    owner = np.full(len(coupling.channels), -1, np.int64)
    for number, group in enumerate(chosen):
        owner[coupling.units[group.units]] = number
    places: list[dict[fx.Node, tuple[int, ...]]] = [{} for _ in chosen]
    refused: dict[str, str] = {}
    for node, axes in coupling.values.items():
        several = isinstance(axes, list)
        for dim, axis in enumerate([each for part in axes for each in part or ()] if several else axes or ()):
            rows = _rows(coupling, axis)
            if rows is None:
                continue
            for number in set(np.unique(owner[rows]).tolist()) - {-1}:
                ids = coupling.units[chosen[number].units]
                plain = (
                    not several
                    and not coupling.captured.info[node].dtype.is_complex
                    and len(axis) == 1
                    and rows.shape == (len(ids), 1)
                    and (rows[:, 0] == ids).all()
                )
                if plain:
                    places[number][node] = (*places[number].get(node, ()), dim)
                else:
                    where = f" in {module}" if (module := node.meta.get("module")) else ""
                    refused.setdefault(chosen[number].name, f"{node.target}{where} has its channels among others")
    found = [Stream(g.name, len(g.units), at) for g, at in zip(chosen, places, strict=True) if g.name not in refused]
    return found, refused


def _rows(coupling: Coupling, axis: Axis) -> Ids | None:
    """Returns the channels that each coordinate of an axis needs, ``[size, k]``; of a product of several, those of all; None if none."""
    labels = [coupling.channels.resolve(part) for part in ax.labels_of(axis)]
    if not any(part.any() for part in labels):
        return None
    return labels[0] if len(labels) == 1 else np.concatenate([part.reshape(-1, 1) for part in labels])

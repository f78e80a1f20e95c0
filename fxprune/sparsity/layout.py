"""Where the units of a coupled model lie on the parameters of a live one, which are found by name at every step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fxprune._base.names import fetch
from fxprune.coupling.coupling import Coupling
from fxprune.sparsity import shards


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """One dimension of one parameter.

    Attributes:
        tensor: its name.
        dim: which of its dimensions.
        units: the numbers of the units that each coordinate needs, ``[size, k]``; the number of units stands for none.
    """

    tensor: str
    dim: int
    units: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """Coordinates of one dimension of one parameter that are to be zero.

    Attributes:
        tensor: its name.
        dim: which of its dimensions.
        gone: flags of the coordinates, ``[size]``.
    """

    tensor: str
    dim: int
    gone: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """All places of all units.

    Attributes:
        places: those with units, each dimension once.
        weights: how many weights lie on each unit, ``[units]``.
    """

    places: tuple[Place, ...]
    weights: Tensor

    def norms(self, model: nn.Module) -> Tensor:
        """Returns the norm of all weights that lie on each unit, ``[units]``: what makes it, scales it and reads it."""
        found = self.weights.new_zeros(len(self.weights) + 1)
        for place in self.places:
            _add(found, place, shards.squares(fetch(model, place.tensor), place.dim))
        return found[:-1].sqrt()

    def cuts(self, gone: Tensor) -> tuple[Cut, ...]:
        """Returns wherever the flagged units, ``[units]``, lie."""
        flags = torch.cat([gone, gone.new_zeros(1)])
        every = (Cut(place.tensor, place.dim, flags[place.units].any(dim=1)) for place in self.places)
        return tuple(cut for cut in every if bool(cut.gone.any()))

    def scale(self, model: nn.Module, factors: Tensor) -> None:
        """Multiplies all weights that lie on each unit by its factor, ``[units]``; those on several by the product."""
        every = torch.cat([factors, factors.new_ones(1)])
        for place in self.places:
            shards.scale(fetch(model, place.tensor), place.dim, every[place.units].prod(dim=1))


def clear(model: nn.Module, cuts: Iterable[Cut]) -> None:
    """Writes zeros there."""
    for cut in cuts:
        shards.clear(fetch(model, cut.tensor), cut.dim, cut.gone)


def layout_of(coupling: Coupling, device: torch.device) -> Layout:
    """Returns where the units lie; index tensors are on the device of the model."""
    unit_of = np.full(len(coupling.channels), len(coupling.units), np.int64)
    unit_of[coupling.units] = np.arange(len(coupling.units))
    unit_of[0] = len(coupling.units)
    places, weights = list[Place](), torch.zeros(len(coupling.units) + 1, device=device)
    for axis in coupling.axes:
        units = torch.from_numpy(unit_of[axis.labels]).to(device)
        if axis.is_parameter and bool((units < len(coupling.units)).any()):
            place = Place(axis.tensor, axis.dim, units)
            tensor = fetch(coupling.captured.module, axis.tensor)
            assert tensor.shape[axis.dim] == len(units), f"{axis.tensor}: one label for each coordinate"
            each = tensor.numel() // len(units)
            _add(weights, place, weights.new_full((len(units),), each))
            places.append(place)
    return Layout(tuple(places), weights[:-1])


def _add(total: Tensor, place: Place, values: Tensor) -> None:
    """Adds the value of each coordinate, ``[size]``, to its units, ``[units + 1]``."""
    for column in place.units.T:
        total.index_add_(0, column, values.to(total))


def flags_of(units: Sequence[int] | np.ndarray[tuple[int], np.dtype[np.int64]], like: Layout) -> Tensor:
    """Returns a flag for each unit, ``[units]``, set for those of these numbers."""
    flags = torch.zeros(len(like.weights), dtype=torch.bool, device=like.weights.device)
    flags[torch.as_tensor(np.asarray(units, np.int64), device=flags.device)] = True
    return flags

"""Linear forms: how many coordinates of an axis are left, as a sum over the units that may go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from fxprune.algebra.axes import Axis, explicit, size_of
from fxprune.algebra.channels import Ids, Mask
from fxprune.coupling.coupling import Coupling


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """``constant`` and, for each channel that stays, its ``weight``.

    Attributes:
        constant: what is left if all channels go.
        channels: ids, ``[channels]``, in order, each once.
        weights: of each channel, ``[channels]``, none 0; in units of ``1 / scale``.
        scale: what the weights are divided by.
    """

    constant: Fraction
    channels: Ids
    weights: Ids
    scale: int = 1

    @property
    def is_constant(self) -> bool:
        """Whether no channel has a part in it."""
        return not len(self.channels)

    @property
    def is_nothing(self) -> bool:
        """Whether it is 0."""
        return self.is_constant and not self.constant

    def __sub__(self, other: Form) -> Form:
        return self.plus(other, -1)

    def plus(self, other: Form, factor: int | Fraction = 1) -> Form:
        """Returns the sum with a multiple of another form."""
        factor = Fraction(factor)
        scale = self.scale * other.scale * factor.denominator
        mine = self.weights * (scale // self.scale)
        others = other.weights * (scale // other.scale * factor.numerator // factor.denominator)
        ids, where = np.unique(np.concatenate([self.channels, other.channels]), return_inverse=True)
        weights = np.zeros(len(ids), np.int64)
        np.add.at(weights, where, np.concatenate([mine, others]))
        kept = weights != 0
        return Form(self.constant + other.constant * factor, ids[kept], weights[kept], scale)

    def times(self, factor: int | Fraction) -> Form:
        """Returns a multiple."""
        return NOTHING.plus(self, factor)


def ratio_of(a: Form, b: Form) -> Fraction | None:
    """Returns the number that one form is another's multiple by; None if it is not one."""
    if a.is_constant or b.is_constant or not np.array_equal(a.channels, b.channels):
        return None
    found = Fraction(int(a.weights[0]) * b.scale, int(b.weights[0]) * a.scale)
    return found if (a - b.times(found)).is_nothing else None


NOTHING = Form(Fraction(0), np.zeros(0, np.int64), np.zeros(0, np.int64))


def number(value: int | Fraction) -> Form:
    """Returns the form of a number."""
    return Form(Fraction(value), NOTHING.channels, NOTHING.weights)


class ProductError(Exception):
    """What is left of an axis is no sum over channels, since coordinates need several of these: ``channels`` are to stay."""

    def __init__(self, channels: Ids) -> None:
        super().__init__()
        self.channels = channels


def form_of(coupling: Coupling, axis: Axis, size: int, free: Mask, upto: int | None = None) -> Form:
    """Returns how many coordinates of an axis are left.

    Args:
        coupling: whose axis it is.
        axis: of a value.
        size: of the axis at the example.
        free: flags the channels that may go, ``[channels]``.
        upto: count those before this place alone.

    Raises:
        ProductError: a coordinate needs several channels that may go.
    """
    rows = explicit(axis)
    if rows is None:
        raise ProductError(_free_of(coupling, axis, free))
    labels = coupling.channels.resolve(rows) if rows.size else rows
    labels = np.where(free[labels], labels, 0)[: len(rows) if upto is None else upto]
    own = labels.max(axis=1, initial=0)
    several = (np.where(labels == own[:, None], 0, labels) != 0).any(axis=1)
    if several.any():
        raise ProductError(np.setdiff1d(labels[several], [0]))
    ids, counts = np.unique(own[own > 0], return_counts=True)
    scale = Fraction(size, size_of(axis)) if upto is None and size_of(axis) else Fraction(1)
    found = Form(Fraction(int((own == 0).sum())), ids, counts)
    return found if scale == 1 else found.times(scale)


def _free_of(coupling: Coupling, axis: Axis, free: Mask) -> Ids:
    rows: Iterable[Ids] = (coupling.channels.resolve(f.labels).reshape(-1) for f in axis if f.labels is not None)
    ids = np.unique(np.concatenate([np.zeros(0, np.int64), *rows]))
    found: Ids = ids[free[ids]]
    return found

"""Greedy elimination: remove the unit whose part the kept ones reconstruct best, again and again.

Optimal Brain Surgeon (Hassibi and Stork 1993) for a linear layer, in blocks of columns as a unit has them. With C the
covariance of the layer's input, W its weight and ``P = (C + lambda I)^-1``, taking the columns u away and letting all
others make up for them raises ``min tr((W - V) C (W - V)^T) + lambda |W - V|^2`` by ``tr(W_u P_uu^-1 W_u^T)``, where V
has no removed columns. Then ``W -= W_u P_uu^-1 P_u:`` and ``P -= P_:u P_uu^-1 P_u:`` (the Schur complement).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune._base.errors import CalibrationError

#: One in so many of the units that are left goes before all of the others are looked at again, and of so many times as many the
#: best is chosen each time: what the others cost hardly changes, and is more once something is gone.
_AT_ONCE, _AMONG = 32, 4


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """A linear map that reads units.

    Attributes:
        gram: covariance of its input, ``[p, p]``, float64.
        weight: ``[outputs, p]``, float64; rows scaled by how much an output's error matters.
        columns: the columns of each unit, ``[units, c]``; filled up with p where a unit has fewer.
    """

    gram: Tensor
    weight: Tensor
    columns: Tensor


class _State:
    """Precision and compensated weight (transposed) of a reader, ``[p + 1, ...]``: the last row stands for no column."""

    def __init__(self, reader: Reader, ridge: float) -> None:
        p = len(reader.gram)
        if not torch.isfinite(reader.gram).all():
            raise CalibrationError(
                "calibration data: a layer's inputs overflow, or are NaN: their covariance is not finite"
            )
        self.columns = reader.columns
        level = float(reader.gram.diagonal().mean()) * ridge
        self.precision = torch.eye(p + 1, dtype=torch.float64, device=reader.gram.device)
        self.weight = reader.weight.new_zeros(p + 1, len(reader.weight))
        if level > 0:
            damped = reader.gram + level * self.precision[:p, :p]
            factor, failed = torch.linalg.cholesky_ex(damped)
            self.precision[:p, :p] = torch.linalg.pinv(damped) if int(failed) else torch.cholesky_inverse(factor)
            self.weight[:p] = reader.weight.T

    @property
    def dummy(self) -> int:
        """The number that stands for no column."""
        return len(self.precision) - 1

    def costs(self, units: Tensor) -> Tensor:
        """Returns what removing each of the units alone would cost, ``[units]``."""
        at = self.columns[units]
        parts = self.weight[at]  # [units, c, outputs]
        return _costs(_apart(self.precision[at[:, :, None], at[:, None, :]], at == self.dummy), parts @ parts.mT)

    def among(self, units: Tensor) -> _Few:
        """Returns what decides between the units, ``[units]``, whose order is not to depend on any other."""
        at = self.columns[units].flatten()
        parts = self.weight[at]
        precision = _apart(self.precision[at[:, None], at], at == self.dummy)
        return _Few(precision, parts @ parts.T, self.columns.shape[1])

    def remove(self, units: Tensor) -> None:
        """Takes the columns of the units out of precision and weight."""
        at = self.columns[units].flatten()
        at = at[at < self.dummy]
        if not len(at):
            return
        rows = self.precision[at]
        gain = _solved(rows[:, at], rows)
        self.weight.addmm_(gain.T, self.weight[at], alpha=-1)
        self.precision.addmm_(rows.T, gain, alpha=-1)

    def only(self, units: Tensor) -> None:
        """Drops the columns that belonged to units which are gone; those of no unit stay."""
        owned = torch.zeros(self.dummy + 1, dtype=torch.bool, device=self.columns.device)
        owned[self.columns.flatten()] = True
        stays = ~owned
        stays[self.columns[units].flatten()] = True
        stays[self.dummy] = True
        place = stays.cumsum(0) - 1
        self.precision, self.weight = self.precision[stays][:, stays], self.weight[stays]
        self.columns = torch.where(stays[self.columns], place[self.columns], len(self.precision) - 1)


class _Few:
    """A part of a `_State`: the precision of some units' columns, and the inner products of their weights."""

    def __init__(self, precision: Tensor, products: Tensor, each: int) -> None:
        self.precision, self.products, self.each = precision, products, each

    def costs(self) -> Tensor:
        """Returns what removing each of the units would cost now, ``[units]``."""
        return _costs(*(_blocks(x, self.each) for x in (self.precision, self.products)))

    def remove(self, unit: int) -> None:
        """Takes a unit out; what it costs from now on means nothing."""
        at = slice(unit * self.each, (unit + 1) * self.each)
        gain = _solved(self.precision[at, at], self.precision[at])  # [c, columns]
        self.precision = self.precision - self.precision[at].T @ gain
        self.products = self.products - gain.T @ self.products[at]
        self.products = self.products - self.products[:, at] @ gain
        self.precision[at, at] = torch.eye(self.each, dtype=self.precision.dtype, device=self.precision.device)


def _blocks(x: Tensor, each: int) -> Tensor:
    """Returns the blocks on the diagonal, ``[units, c, c]`` of ``[units * c, units * c]``."""
    count = len(x) // each
    return x.reshape(count, each, count, each).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def _costs(precision: Tensor, products: Tensor) -> Tensor:
    """Returns ``tr(P_uu^-1 W_u^T W_u)`` of each unit, ``[units]`` of ``[units, c, c]``."""
    if precision.shape[-1] == 1:
        return (products / precision)[:, 0, 0]
    return _solved(precision, products).diagonal(dim1=1, dim2=2).sum(dim=1)


def _solved(a: Tensor, b: Tensor) -> Tensor:
    """Returns ``a^-1 b`` for ``a`` that is symmetric and positive, ``[..., c, c]``; by the pseudoinverse where rounding leaves less."""
    factor, failed = torch.linalg.cholesky_ex(a)
    if failed.any():
        inverse: Tensor = torch.linalg.pinv(a, hermitian=True)
        return inverse @ b
    found: Tensor = torch.cholesky_solve(b, factor)
    return found


def _apart(precision: Tensor, fill: Tensor) -> Tensor:
    """Returns ``[..., c, c]`` made regular where ``fill``, ``[..., c]``, says that there is no column: one apart, of no weight."""
    fill = fill.to(precision.dtype)
    precision = precision * (1 - fill)[..., :, None] * (1 - fill)[..., None, :]
    return precision + torch.diag_embed(fill)


def eliminate(readers: Sequence[Reader], count: int, ridge: float) -> tuple[list[int], list[float]]:
    """Returns the units in the order in which they go, and what each removal costs, as a sum over the readers.

    Args:
        readers: all that read the units.
        count: how many units there are.
        ridge: damping as a share of a reader's mean variance.

    Raises:
        CalibrationError: a covariance is not finite.
    """
    states = [_State(reader, ridge) for reader in readers]
    left = torch.arange(count, device=readers[0].gram.device if readers else None)
    order: list[int] = []
    errors: list[float] = []
    whole = count
    while len(left):
        costs = _sum(state.costs(left) for state in states)
        many = max(1, len(left) // _AT_ONCE)
        candidates = costs.argsort(stable=True)[: _AMONG * many if many > 1 else 1]
        units, taken = left[candidates], _taken([state.among(left[candidates]) for state in states], many)
        order += units[[unit for unit, _ in taken]].tolist()
        errors += [max(cost, 0.0) for _, cost in taken]
        gone = units[[unit for unit, _ in taken]]
        left = left[~torch.isin(left, gone)]
        for state in states:
            state.remove(gone)
        if 2 * len(left) <= whole:
            whole = len(left)
            for state in states:
                state.only(left)
    return order, errors


def _taken(few: Sequence[_Few], many: int) -> list[tuple[int, float]]:
    """Returns the units that go of some, by number, one after the other, and what each costs."""
    taken: list[tuple[int, float]] = []
    while True:
        costs = _sum(state.costs() for state in few)
        if taken:
            costs[[unit for unit, _ in taken]] = torch.inf
        best = int(costs.argmin())
        taken.append((best, float(costs[best])))
        if len(taken) == many:
            return taken
        for state in few:
            state.remove(best)


def _sum(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum(dim=0)

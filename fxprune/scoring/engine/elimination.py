"""Greedy elimination: remove the unit whose part the kept ones reconstruct best, again and again.

Optimal Brain Surgeon (Hassibi and Stork 1993) for a linear layer, in blocks of columns as a unit has them. With C the
covariance of the layer's input, W its weight and ``P = (C + lambda I)^-1``, taking the columns u away and letting all
others make up for them raises ``min tr((W - V) C (W - V)^T) + lambda |W - V|^2`` by ``tr(W_u P_uu^-1 W_u^T)``, where V
has no removed columns. Then ``W -= W_u P_uu^-1 P_u:`` and ``P -= P_:u P_uu^-1 P_u:`` (the Schur complement).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune._base.errors import CalibrationError

#: Rows by which the precision is downdated at once.
_TOGETHER = 64


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
    """Precision and compensated weight (transposed) of a reader, and what its next removal costs.

    The costs need the precision's blocks and a removal its rows, so that the whole is downdated only now and then, for
    many removals at once: ``P - rows^T gains``.
    """

    def __init__(self, reader: Reader, ridge: float) -> None:
        p = len(reader.gram)
        if not torch.isfinite(reader.gram).all():
            raise CalibrationError("calibration data: a layer's inputs overflow: their covariance is not finite")
        self.columns, self.dummy = reader.columns, p
        level = float(reader.gram.diagonal().mean()) * ridge
        self.precision = torch.eye(p + 1, dtype=torch.float64, device=reader.gram.device)
        self.weight = reader.weight.new_zeros(p + 1, len(reader.weight))
        if level > 0:
            damped = reader.gram + level * self.precision[:p, :p]
            factor, failed = torch.linalg.cholesky_ex(damped)
            self.precision[:p, :p] = torch.linalg.pinv(damped) if int(failed) else torch.cholesky_inverse(factor)
            self.weight[:p] = reader.weight.T
        self.blocks = self.precision[self.columns[:, :, None], self.columns[:, None, :]] + self._fill()
        self.rows = self.gains = self.precision.new_empty(0, p + 1)

    def costs(self, units: Tensor) -> Tensor:
        """Returns what removing each of the units would cost, ``[units]``."""
        parts = self.weight[self.columns[units]]  # [units, c, outputs]
        solved: Tensor = torch.linalg.solve(self.blocks[units], parts @ parts.mT)
        return solved.diagonal(dim1=1, dim2=2).sum(dim=1)

    def remove(self, unit: int) -> None:
        """Takes the unit's columns out of precision and weight."""
        at = self.columns[unit]
        at = at[at < self.dummy]
        if not len(at):
            return
        rows = self.precision[at] - self.rows[:, at].T @ self.gains
        gain = torch.linalg.solve(rows[:, at], rows)
        self.weight.addmm_(gain.T, self.weight[at], alpha=-1)
        self.weight[at] = 0
        self.blocks -= torch.einsum("rua,rub->uab", rows[:, self.columns], gain[:, self.columns])
        self.rows, self.gains = torch.cat([self.rows, rows]), torch.cat([self.gains, gain])
        if len(self.rows) >= _TOGETHER:
            self.precision.addmm_(self.rows.T, self.gains, alpha=-1)
            self.rows, self.gains = self.rows[:0], self.gains[:0]

    def _fill(self) -> Tensor:
        """Makes the blocks of units with fewer columns regular: the fill stands for columns apart, of no weight."""
        pad = (self.columns == self.dummy).to(self.precision.dtype)
        return torch.diag_embed(pad) - pad[:, :, None] * pad[:, None, :]


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
    for _ in range(count):
        costs = torch.stack([state.costs(left) for state in states]).sum(dim=0)
        best = int(costs.argmin())
        unit = int(left[best])
        order.append(unit)
        errors.append(max(float(costs[best]), 0.0))
        left = torch.cat([left[:best], left[best + 1 :]])
        for state in states:
            state.remove(unit)
    return order, errors

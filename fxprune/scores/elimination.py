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

from fxprune.errors import CalibrationError


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
    """Precision and compensated weight of a reader, and what its next removal costs."""

    def __init__(self, reader: Reader, ridge: float) -> None:
        p = len(reader.gram)
        if not torch.isfinite(reader.gram).all():
            raise CalibrationError(
                "calibration data: a layer's inputs overflow: their covariance is not finite"
            )
        self.columns, self.dummy = reader.columns, p
        level = float(reader.gram.diagonal().mean()) * ridge
        self.precision = torch.eye(p + 1, dtype=torch.float64, device=reader.gram.device)
        if level > 0:
            damped = reader.gram + level * self.precision[:p, :p]
            factor, failed = torch.linalg.cholesky_ex(damped)
            inverse = torch.cholesky_inverse(factor) if not int(failed) else torch.linalg.pinv(damped)
            self.precision[:p, :p] = inverse
            self.weight = torch.cat([reader.weight, reader.weight.new_zeros(len(reader.weight), 1)], dim=1)
        else:
            self.weight = reader.weight.new_zeros(len(reader.weight), p + 1)

    def costs(self, units: Tensor) -> Tensor:
        """Returns what removing each of the units would cost, ``[units]``."""
        at = self.columns[units]
        blocks = self.precision[at[:, :, None], at[:, None, :]] + self._fill(at)
        parts = self.weight[:, at].permute(1, 2, 0)  # [units, c, outputs]
        solved: Tensor = torch.linalg.solve(blocks, parts)
        return (solved * parts).sum(dim=(1, 2))

    def remove(self, unit: int) -> None:
        """Takes the unit's columns out of precision and weight."""
        at = self.columns[unit]
        at = at[at < self.dummy]
        if not len(at):
            return
        rows = self.precision[at]
        gain = torch.linalg.solve(rows[:, at], rows)
        self.weight.addmm_(self.weight[:, at], gain, alpha=-1)
        self.precision.addmm_(rows.T, gain, alpha=-1)
        self.weight[:, at] = 0

    def _fill(self, at: Tensor) -> Tensor:
        """Makes the blocks of units with fewer columns regular: the fill stands for columns apart, of no weight."""
        pad = (at == self.dummy).to(self.precision.dtype)
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

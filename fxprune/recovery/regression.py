"""Ridge regressions of targets on columns: by the columns' squares, or, of fewer samples than columns, by the samples' own (the dual)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fxprune._base.errors import CalibrationError
from fxprune.recovery.moments import Moments
from fxprune.recovery.squares import own_products


def gain_of(moments: Moments, g: int, stays: Tensor, ridge: float) -> Tensor:
    """Returns what gives one group's targets from its kept columns about their means, ``[outputs, kept]``.

    Args:
        moments: of the columns with the targets.
        g: the group.
        stays: which columns are kept, ``[columns]``.
        ridge: damping, as a share of their mean variance.

    Raises:
        CalibrationError: the covariance is not finite.
    """
    if moments.rows is None:
        return ridge_solve(moments.xx[g][stays][:, stays], moments.tx[g][:, stays], ridge)
    return Dual(*moments.samples(g, stays, moments.mean_x, moments.mean_t)).gain(ridge)


def ridge_solve(gram: Tensor, right: Tensor, ridge: float) -> Tensor:
    """Returns ``right @ (gram + ridge * mean(diag(gram)) * I)^-1`` for ``gram[p, p]``, ``right[q, p]``.

    Raises:
        CalibrationError: the covariance is not finite.
    """
    level = float(gram.diagonal().mean()) if len(gram) else 0.0
    return _solve(gram, right, ridge * level)


def _solve(gram: Tensor, right: Tensor, damping: float) -> Tensor:
    """Returns ``right[q, p] @ (gram[p, p] + damping * I)^-1``; zeros where nothing varies."""
    if gram.numel() == 0 or right.numel() == 0:
        return right
    if not torch.isfinite(gram.sum()) and not torch.isfinite(gram).all():
        raise CalibrationError(
            "calibration data: a layer's inputs overflow, or are NaN: their covariance is not finite"
        )
    if not gram.diagonal().any():
        return torch.zeros_like(right)
    damped = gram.clone()
    damped.diagonal().add_(damping)
    factor, failed = torch.linalg.cholesky_ex(damped)
    solution = torch.linalg.lstsq(damped, right.T).solution if int(failed) else torch.cholesky_solve(right.T, factor)
    return solution.T


@dataclass(frozen=True, eq=False)
class Dual:
    """The regression of ``t[samples, q]`` on ``x[samples, p]``, of few samples: ``T^t (X X^t + ridge * level * I)^-1 X``.

    That is the primal's ``T^t X (X^t X + ridge * level * I)^-1``, where ``level`` is the mean of the diagonal of ``X^t X``.
    """

    x: Tensor
    t: Tensor

    @cached_property
    def level(self) -> float:
        """The mean of the columns' squares, a sum over the samples."""
        return float(self.x.square().sum()) / max(self.x.shape[1], 1)

    @cached_property
    def _gram(self) -> Tensor:
        """The products of the samples with each other, ``[samples, samples]``."""
        return own_products(self.x.T)

    def weights(self, ridge: float) -> Tensor:
        """Returns ``(X X^t + ridge * level * I)^-1 T``, ``[samples, q]``; zeros where nothing varies."""
        return _solve(self._gram, self.t.T, ridge * self.level).T

    def gain(self, ridge: float) -> Tensor:
        """Returns the regression, ``[q, p]``."""
        return self.weights(ridge).T @ self.x

"""Ridge regressions of targets on columns: by the columns' squares, or, of fewer samples than columns, by the samples' own (the dual)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fxprune._base.errors import CalibrationError
from fxprune.recovery.moments import Moments


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
    size = gram.shape[0]
    if size == 0 or right.shape[0] == 0:
        return right
    _check_finite(gram)
    level = gram.diagonal().mean()
    if not level > 0:
        return torch.zeros_like(right)
    damped = gram + ridge * level * torch.eye(size, dtype=gram.dtype, device=gram.device)
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
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """The eigenvalues and eigenvectors of ``X X^t``, ``[samples]`` and ``[samples, samples]``."""
        gram = self.x @ self.x.T
        _check_finite(gram)
        values, vectors = torch.linalg.eigh(gram)
        return values.clamp(min=0), vectors

    def weights(self, ridge: float) -> Tensor:
        """Returns ``(X X^t + ridge * level * I)^-1 T``, ``[samples, q]``; zeros where nothing varies."""
        values, vectors = self._spectrum
        if not self.level > 0:
            return torch.zeros_like(self.t)
        damped = values + ridge * self.level
        inverse = torch.where(damped > torch.finfo(damped.dtype).eps * damped.max(), 1 / damped, 0.0)
        return vectors @ ((vectors.T @ self.t) * inverse[:, None])

    def gain(self, ridge: float) -> Tensor:
        """Returns the regression, ``[q, p]``."""
        return self.weights(ridge).T @ self.x


def _check_finite(gram: Tensor) -> None:
    if not torch.isfinite(gram).all():
        raise CalibrationError(
            "calibration data: a layer's inputs overflow, or are NaN: their covariance is not finite"
        )

"""Means and (cross-)covariances of columns, streamed: centred in each batch, merged in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from fxprune._base.errors import CalibrationError


class Moments:
    """The count, means and centred second moments of ``x[samples, groups, p]`` with ``t[samples, groups, q]``."""

    def __init__(self) -> None:
        self.count = 0
        self.mean_x = torch.zeros(0, dtype=torch.float64)
        self.mean_t = torch.zeros(0, dtype=torch.float64)
        self.xx = torch.zeros(0, dtype=torch.float64)
        self.tx = torch.zeros(0, dtype=torch.float64)

    def add(self, x: Tensor, t: Tensor | None = None) -> None:
        """Takes in a batch (Chan et al. 1983, parallel update)."""
        n = len(x)
        if n == 0:
            return
        if x.dtype.itemsize < 4:  # a sum of squares leaves the range of float16
            x, t = x.float(), None if t is None else t.float()
        mean_x = x.mean(dim=0, dtype=torch.float64)
        centred = (x - mean_x.to(x.dtype)).transpose(0, 1)  # [groups, samples, p]
        xx = (centred.transpose(1, 2) @ centred).double()
        if t is None:
            t = x[..., :0]
        mean_t = t.mean(dim=0, dtype=torch.float64)
        tx = ((t - mean_t.to(t.dtype)).permute(1, 2, 0) @ centred).double()
        if not self.count:
            self.count, self.mean_x, self.mean_t, self.xx, self.tx = n, mean_x, mean_t, xx, tx
            return
        total = self.count + n
        step_x, step_t = mean_x - self.mean_x, mean_t - self.mean_t
        scale = self.count * n / total
        self.xx += xx + scale * step_x[..., :, None] * step_x[..., None, :]
        self.tx += tx + scale * step_t[..., :, None] * step_x[..., None, :]
        self.mean_x += step_x * (n / total)
        self.mean_t += step_t * (n / total)
        self.count = total

    def raw(self) -> None:
        """Turns centred moments into moments about zero (for a layer whose shift has no home)."""
        self.xx += self.count * self.mean_x[..., :, None] * self.mean_x[..., None, :]
        self.tx += self.count * self.mean_t[..., :, None] * self.mean_x[..., None, :]
        self.mean_x.zero_()
        self.mean_t.zero_()


def ridge_solve(gram: Tensor, right: Tensor, ridge: float) -> Tensor:
    """Returns ``right @ (gram + ridge * mean(diag(gram)) * I)^-1`` for ``gram[p, p]``, ``right[q, p]``.

    Raises:
        CalibrationError: the covariance is not finite.
    """
    size = gram.shape[0]
    if size == 0 or right.shape[0] == 0:
        return right
    if not torch.isfinite(gram).all():
        raise CalibrationError("calibration data: a layer's inputs overflow: their covariance is not finite")
    level = gram.diagonal().mean()
    if not level > 0:
        return torch.zeros_like(right)
    damped = gram + ridge * level * torch.eye(size, dtype=gram.dtype, device=gram.device)
    factor, failed = torch.linalg.cholesky_ex(damped)
    if int(failed):
        solution: Tensor = torch.linalg.lstsq(damped, right.T).solution.T
        return solution
    return torch.cholesky_solve(right.T, factor).T

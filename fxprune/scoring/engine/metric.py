"""How much an error at a layer's output matters: the second moment of the gradients of a loss there.

An error e of the output y moves the loss by ``e . dL/dy`` to first order; its mean square is ``e^T G e`` with
``G = E[sum over positions of g g^T]``. Of a loss that is a log-likelihood that is the empirical Fisher information.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune._base.errors import ScorerError
from fxprune.recovery.consumers import Consumer

#: Of the mean of the diagonal, what keeps a moment of few samples regular.
_DAMPING = 1e-6


@dataclass(eq=False)
class Metric:
    """Of one layer, gathered batch by batch.

    Attributes:
        consumer: the layer.
        weight: as ``[groups, outputs, columns]``, float64.
        full: the whole matrix; otherwise its diagonal.
    """

    consumer: Consumer
    weight: Tensor
    full: bool = True

    def __post_init__(self) -> None:
        """Begins with nothing; of a layer with more outputs than columns it is ``W^T G W`` that is gathered."""
        groups, outputs, columns = self.weight.shape
        self._wide = self.full and outputs > columns
        size = (groups, columns, columns) if self._wide else (groups, outputs, outputs)
        self._moment = self.weight.new_zeros(size if self.full else size[:2])

    def add(self, slope: Tensor) -> None:
        """Takes in the gradients of a batch by the layer's output, of its shape ``[samples, ...]``."""
        rows = self.consumer.outputs(slope)  # [positions, groups, outputs]
        if not self.full:
            self._moment += rows.double().square().sum(dim=0)
            return
        rows = rows.transpose(0, 1).float() if rows.dtype.itemsize < 4 else rows.transpose(0, 1)
        rows = rows @ self.weight.to(rows.dtype) if self._wide else rows
        self._moment += (rows.mT @ rows).double()

    def scaled(self, samples: int) -> Tensor:
        """Returns weights ``[groups, rows, columns]`` whose plain square error is the error in this metric, a mean over samples.

        Raises:
            ScorerError: the gradients are not finite.
        """
        moment = self._moment / max(samples, 1)
        if not torch.isfinite(moment).all():
            raise ScorerError(
                f"{self.consumer.weight}: the gradients at its outputs are not finite: the loss, or half precision, overflows; "
                "try model.float() or another loss="
            )
        if not self.full:
            return self.weight * moment.sqrt()[:, :, None]
        level = moment.diagonal(dim1=1, dim2=2).mean(dim=1)
        damped = moment + _DAMPING * level[:, None, None] * torch.eye(moment.shape[1]).to(moment)
        factor, failed = torch.linalg.cholesky_ex(damped)
        for g in torch.nonzero(failed).flatten().tolist():
            values, vectors = torch.linalg.eigh(damped[g])
            factor[g] = vectors * values.clamp_min(0).sqrt()
        root: Tensor = factor.mT
        return root if self._wide else root @ self.weight

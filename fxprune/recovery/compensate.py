"""Mean shift and covariance compensation from statistics of the dense model.

With C the centred covariance of a consumer's input, mu its mean, P its removed and S its kept columns
(DVBP+OB2C, arXiv 2608.17657): ``B = C_PS (C_SS + lambda I)^-1``, ``W_S += W_P B``, ``b += W_P (mu_P - B mu_S)``.
VBP's mean shift (arXiv 2507.12988) is the case B = 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxprune.recovery.consumers import Consumer
from fxprune.recovery.moments import Moments, ridge_solve
from fxprune.recovery.protocol import RecoveryContext
from fxprune.recovery.replacements import Replacements


def compensate(context: RecoveryContext, *, covariance: bool) -> dict[str, Tensor]:
    """Returns full-size replacements of the consumers' weights, biases and running means.

    The inputs are gone through once for each part of the consumers whose statistics fit into memory together; a single
    consumer beyond the limit is compensated in blocks of columns.

    Args:
        context: the layers that lose columns, and their inputs.
        covariance: False for the mean shift alone.
    """
    changed = Replacements(context.selection.coupling)
    for consumer, blocks in context.moments(covariance=covariance):
        _update(changed, consumer, blocks, context.ridge if covariance else None)
    return changed.tensors


def _update(
    changed: Replacements, consumer: Consumer, blocks: Sequence[tuple[slice, Moments]], ridge: float | None
) -> None:
    """Compensates one layer; without a ridge by the mean shift alone."""
    weight = consumer.matrix(changed.value(consumer.weight)).double()
    update = torch.zeros_like(weight)
    shift = torch.zeros(weight.shape[:2], dtype=torch.float64, device=weight.device)
    kept_all = torch.from_numpy(consumer.kept).to(weight.device)
    for block, moments in blocks:
        if ridge is not None and consumer.home is None:
            moments.raw()
        for g in range(consumer.groups):
            kept = kept_all[g, block]
            removed_weight = weight[g, :, block][:, ~kept]
            mean = moments.mean_x[g]
            shift[g] += removed_weight @ mean[~kept]
            if ridge is not None:
                gram = moments.xx[g]
                gain = ridge_solve(gram[kept][:, kept], removed_weight @ gram[~kept][:, kept], ridge)
                update[g, :, block][:, kept] = gain
                shift[g] -= gain @ mean[kept]
    changed.add(consumer, update, shift)

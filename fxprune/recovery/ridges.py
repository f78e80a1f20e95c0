"""Ridges: how much a regression is damped, by what it makes of samples that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxprune.recovery.consumers import Consumer
from fxprune.recovery.moments import Blocks, Moments, ridge_solve

#: Those that are tried, as multiples of the one that is given.
RIDGES = (1e-2, 1e-1, 1.0, 1e1, 1e2)


def best_ridge(consumer: Consumer, blocks: Blocks, ridges: Sequence[float]) -> float | None:
    """Returns which ridge leaves the least error on what the blocks' moments hold out; None if nothing but a shift does.

    That is so as well where there are too few samples to hold any out.

    Args:
        consumer: the layer.
        blocks: moments of its columns with what its outputs lack.
        ridges: ascending; those behind the first that is worse than the one before are not tried.
    """
    best, least = None, 0.0
    for ridge in ridges:
        error = sum(_error(consumer, block, moments, ridge) for block, moments in blocks)
        if best is not None and error > least:
            break
        if error < least:
            best, least = ridge, error
    return best


def _error(consumer: Consumer, block: slice, moments: Moments, ridge: float) -> float:
    """Returns how much larger the error on what is held out is than that of a shift alone."""
    held = moments.held
    if held is None or not held.count:
        return 0.0
    kept = torch.from_numpy(consumer.kept[:, block]).to(moments.mean_x.device)
    origin = (moments.mean_x, moments.mean_t) if consumer.home is not None else (0 * moments.mean_x, 0 * moments.mean_t)
    (xx, tx), (held_xx, held_tx) = moments.about(*origin), held.about(*origin)
    error = 0.0
    for g, stays in enumerate(kept):
        gain: Tensor = ridge_solve(xx[g][stays][:, stays], tx[g][:, stays], ridge)
        error += float((gain * (gain @ held_xx[g][stays][:, stays] - 2 * held_tx[g][:, stays])).sum())
    return error

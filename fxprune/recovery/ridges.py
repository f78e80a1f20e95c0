"""Ridges: how much a regression is damped, by what it makes of samples that it has not seen."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fxprune.recovery.consumers import Consumer
from fxprune.recovery.moments import Blocks, Moments, ridge_solve

#: Those that are tried, as multiples of the one that is given.
RIDGES = (1e-2, 1e-1, 1.0, 1e1, 1e2)


def best_ridge(consumer: Consumer, blocks: Blocks, ridge: float) -> float | None:
    """Returns which multiple of a ridge leaves the least error on what the blocks' moments hold out; None if none is better than a shift.

    That is so as well where there are too few samples to hold any out. Those behind the first that is worse than the one before
    are not tried.

    Args:
        consumer: the layer.
        blocks: moments of its columns with what its outputs lack.
        ridge: that is given.
    """
    parts = [part for block, moments in blocks for part in _parts(consumer, block, moments)]
    best, least = None, 0.0
    for each in (multiple * ridge for multiple in RIDGES if parts):
        error = float(torch.stack([_error(part, each) for part in parts]).sum())
        if best is not None and error > least:
            break
        if error < least:
            best, least = each, error
    return best


def _parts(consumer: Consumer, block: slice, moments: Moments) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yields for each group of a layer the kept columns' moments with themselves and with the targets, to fit and to judge by."""
    held = moments.held
    if held is None or not held.count:
        return
    kept = torch.from_numpy(consumer.kept[:, block]).to(moments.mean_x.device)
    origin = (moments.mean_x, moments.mean_t) if consumer.home is not None else (0 * moments.mean_x, 0 * moments.mean_t)
    (xx, tx), (held_xx, held_tx) = moments.about(*origin), held.about(*origin)
    for g, stays in enumerate(kept):
        yield xx[g][stays][:, stays], tx[g][:, stays], held_xx[g][stays][:, stays], held_tx[g][:, stays]


def _error(part: tuple[Tensor, Tensor, Tensor, Tensor], ridge: float) -> Tensor:
    """Returns how much larger the error on what is held out is than that of a shift alone, ``[]``."""
    xx, tx, held_xx, held_tx = part
    gain = ridge_solve(xx, tx, ridge)
    return (gain * (gain @ held_xx - 2 * held_tx)).sum()

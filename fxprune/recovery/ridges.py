"""Ridges: how much a regression is damped, by what it makes of samples that it has not seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.recovery.consumers import Consumer
from fxprune.recovery.measuring import Blocks
from fxprune.recovery.moments import Moments
from fxprune.recovery.regression import Dual, ridge_solve

#: Those that are tried, as multiples of the one that is given.
RIDGES = (1e-2, 1e-1, 1.0, 1e1, 1e2)
#: Of a layer with few samples, which wants no less.
MORE = RIDGES[2:]
#: Of more outputs than twice as many, about so many judge.
_OUTPUTS = 64


def best_ridge(consumer: Consumer, blocks: Blocks, ridge: float, multiples: Sequence[float] = RIDGES) -> float | None:
    """Returns which multiple of a ridge leaves the least error on what the blocks' moments hold out; None if none is better than a shift.

    That is so as well where there are too few samples to hold any out. Those behind the first that is worse than the one before
    are not tried.

    Args:
        consumer: the layer.
        blocks: moments of its columns with what its outputs lack.
        ridge: that is given.
        multiples: of it, ascending.
    """
    parts = [part for block, moments in blocks for part in _parts(consumer, block, moments)]
    best, least = None, 0.0
    for each in (multiple * ridge for multiple in multiples if parts):
        error = sum(part.error(each) for part in parts)
        if best is not None and error > least:
            break
        if error < least:
            best, least = each, error
    return best


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Moments of one group's kept columns in a block, to fit and to judge by, as multiples of their level: a choice needs no float64.

    Attributes:
        xx, tx: with themselves and with the targets, ``[columns, columns]``, ``[outputs, columns]``.
        held_xx, held_tx: those of what is held out.
        level: the mean of the diagonal.
    """

    xx: Tensor
    tx: Tensor
    held_xx: Tensor
    held_tx: Tensor
    level: float

    def error(self, ridge: float) -> float:
        """Returns how much larger the error on what is held out is than that of a shift alone."""
        gain = ridge_solve(self.xx, self.tx, ridge)
        return float((gain * (gain @ self.held_xx - 2 * self.held_tx)).sum()) * self.level


@dataclass(frozen=True, slots=True, eq=False)
class _FewSamples:
    """The samples of one group's kept columns, fewer than these, to fit and to judge by.

    Attributes:
        own: those to fit.
        cross: the products of those held out with them, ``[held, samples]``.
        lacking: the targets of those held out, ``[held, outputs]``.
    """

    own: Dual
    cross: Tensor
    lacking: Tensor

    def error(self, ridge: float) -> float:
        """Returns how much larger the error on what is held out is than that of a shift alone."""
        guess = self.cross @ self.own.weights(ridge)
        return float((guess * (guess - 2 * self.lacking)).sum())


def _parts(consumer: Consumer, block: slice, moments: Moments) -> Iterator[_Part | _FewSamples]:
    """Yields the groups of a layer of which anything varies; of many outputs a part judges."""
    held = moments.held
    if held is None or not held.count or not moments.count:
        return
    kept = torch.from_numpy(consumer.kept[:, block]).to(moments.mean_x.device)
    origin = (moments.mean_x, moments.mean_t) if consumer.home is not None else (0 * moments.mean_x, 0 * moments.mean_t)
    some = slice(None, None, max(moments.mean_t.shape[1] // _OUTPUTS, 1))
    if moments.rows is not None and held.rows is not None:
        for g, stays in enumerate(kept):
            (x, t), (held_x, held_t) = (each.samples(g, stays, *origin) for each in (moments, held))
            size = x.square().mean().sqrt().clamp_min(torch.finfo(x.dtype).tiny)
            x, held_x = (x / size).float(), (held_x / size).float()  # a choice needs no float64
            t, held_t = (part[:, some].float() for part in (t, held_t))
            yield _FewSamples(Dual(x, t), held_x @ x.T, held_t)
        return
    (xx, tx), (held_xx, held_tx) = moments.about(*origin), held.about(*origin)
    for g, stays in enumerate(kept):
        level = float(xx[g].diagonal()[stays].mean()) if stays.any() else 0.0
        if level > 0:
            squares = ((each[g][stays][:, stays] / level).float() for each in (xx, held_xx))
            targets = ((each[g][some][:, stays] / level).float() for each in (tx, held_tx))
            (own, other), (to_fit, to_judge) = squares, targets
            yield _Part(own, to_fit, other, to_judge, level)

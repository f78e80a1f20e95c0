"""HRank: the mean rank of a unit's feature maps (Lin et al. 2020, arXiv 2002.10179, Eq. 5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fxprune.algebra.axes import Axis
from fxprune.coupling.unit_scores import accumulate
from fxprune.scoring.engine.columns import wide
from fxprune.scoring.engine.reads import Input, inputs_read
from fxprune.scoring.engine.shares import as_shares
from fxprune.scoring.scorer import Context, Scorer, register_scorer


@dataclass(frozen=True, slots=True)
class FeatureRank(Scorer):
    """The mean over samples of the rank of a unit's feature map, as a share of its layer's, over all values read.

    The matrix of one sample is height x width for a map, flattened or not. Else rows are positions and columns the unit's
    coordinates (tokens x a head's dimensions). With one coordinate and one position dimension (a hidden unit over tokens)
    or less it is a single row, and its rank says only whether the unit is ever alive.

    The paper prunes every layer by a ratio set by hand. Layers compare here as in `fxprune.scoring.variance`: by shares,
    weighed by what is left of their group.

    Attributes:
        samples: how many samples are used, the first ones; the paper takes 500.
    """

    samples: int = 500
    name: str = "hrank"
    needs: tuple[str, ...] = ("activations",)
    per_cost: bool = True

    @torch.no_grad()
    def score(self, context: Context) -> dict[str, Tensor]:
        """Returns ``mean over samples of rank(map)``, ``[units]``, as shares of each value that contractions read, summed.

        Raises:
            ScorerError: activations are not finite.
        """
        found: dict[Input, npt.NDArray[np.float64]] = {}
        for reading, x in inputs_read(context, self.samples, self.name):
            ranks = found.setdefault(reading, context.zeros())
            for i, factor in enumerate(reading.axis):
                if factor.labels is not None:
                    rank = mean_rank(matrices(x, reading.axis, i), context.memory_limit)
                    accumulate(ranks, context.coupling.channels.resolve(factor.labels), rank * len(x))
        units = context.coupling.units
        return as_shares(context, ((units, ranks[units]) for ranks in found.values()))


def matrices(x: Tensor, axis: Axis, which: int) -> Tensor:
    """Returns one matrix for each sample and coordinate of a factor, ``[samples, coordinates, rows, columns]``.

    Traces x[sample, h, w, c], axis (c): [sample, c, h, w].  x[sample, token, 4 heads x 8]: for the heads
    [sample, 4, token, 8].  x[sample, c x h x w]: [sample, c, h, w].

    Args:
        x: ``[samples, *positions, coordinates of the axis]``.
        axis: what the last dimension is made of.
        which: the factor whose coordinates are wanted.
    """
    many = x.dim() - 2
    x = x.unflatten(-1, [factor.size for factor in axis]).movedim(1 + many + which, 1)
    positions = [size for size in x.shape[2 : 2 + many] if size != 1]
    inner = [size for size in x.shape[2 + many :] if size != 1]
    if positions and inner:
        sizes = math.prod(positions), math.prod(inner)
    else:
        one, either = math.prod(positions + inner), (positions + inner)[-1:]
        sizes = one // math.prod(either), math.prod(either)
    return x.reshape(*x.shape[:2], *sizes)


def mean_rank(x: Tensor, memory_limit: int) -> Tensor:
    """Returns the ranks' mean over samples, ``[coordinates]`` in float64, for ``[samples, coordinates, rows, columns]``."""
    if 1 in x.shape[2:]:
        return (x != 0).flatten(2).any(dim=2).double().mean(dim=0)
    rows = x.flatten(0, 1)
    step = max(1, memory_limit // (4 * 8 * math.prod(x.shape[2:])))
    ranks = [torch.linalg.matrix_rank(wide(part)) for part in rows.split(step)]
    return torch.cat(ranks).reshape(x.shape[:2]).double().mean(dim=0)


register_scorer("hrank", FeatureRank)

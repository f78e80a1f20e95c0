"""HRank: the mean rank of a unit's feature maps (Lin et al. 2020, arXiv 2002.10179, Eq. 5)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from fxprune.axes import Axis, labels_of
from fxprune.coupling import Coupling
from fxprune.errors import ScorerError
from fxprune.scores.base import Context, accumulate, layers_that, register_scorer, remaining_share
from fxprune.scores.gradients import batch_size
from fxprune.verify import Run


@dataclass(frozen=True, slots=True)
class FeatureRank:
    """The mean over samples of the rank of a unit's feature map, as a share of its layer's, over all values read.

    The matrix of one sample is height x width for a map, flattened or not. Else rows are positions and columns the unit's
    coordinates (tokens x a head's dimensions). With one coordinate and one position dimension (a hidden unit over tokens)
    or less it is a single row, and its rank says only whether the unit is ever alive.

    The paper prunes every layer by a ratio set by hand. Layers compare here as in `fxprune.scores.variance`: by shares,
    weighed by what is left of their group.

    Attributes:
        samples: how many samples are used, the first ones; the paper takes 500.
    """

    samples: int = 500
    name: str = "hrank"
    needs: tuple[str, ...] = ("activations",)
    per_cost: bool = True
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def score(self, context: Context) -> dict[str, Tensor]:
        """Returns ``mean over samples of rank(map)``, as shares of each value that contractions read, summed.

        Raises:
            ScorerError: activations are not finite.
        """
        found: dict[Reading, npt.NDArray[np.float64]] = {}
        channels = context.coupling.channels
        with torch.no_grad():
            for reading, x in readings(context, self.samples, self.name):
                ranks = found.setdefault(reading, context.zeros())
                for i, factor in enumerate(reading.axis):
                    if factor.labels is not None:
                        rank = mean_rank(matrices(x, reading.axis, i), context.memory_limit)
                        accumulate(ranks, channels.resolve(factor.labels), rank * len(x))
        return as_shares(context, found.values())


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


def wide(x: Tensor) -> Tensor:
    """Returns a tensor in a precision that linear algebra works in, float32 at least."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


# -- what contractions read, sample by sample -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A value that contractions read along one dimension.

    Attributes:
        source: the value.
        dim: the dimension.
        axis: what that dimension is made of.
    """

    source: fx.Node
    dim: int
    axis: Axis


def readings(context: Context, samples: int, method: str) -> Iterator[tuple[Reading, Tensor]]:
    """Yields every value that contractions read along units, each once a batch, ``[samples, *positions, coordinates]``.

    Args:
        context: of the scorer.
        samples: stop after so many.
        method: who asks, for the message.

    Raises:
        ScorerError: a value is not finite.
    """
    coupling = context.coupling
    wanted: dict[fx.Node, dict[int, Reading]] = {}
    for c in coupling.contractions:
        if any(coupling.channels.resolve(labels).shape[1] for labels in labels_of(c.axis)):
            wanted.setdefault(c.source, {}).setdefault(c.dim, Reading(c.source, c.dim, c.axis))
    run, left = Run(coupling), samples
    for batch in context.inputs:
        if left <= 0:
            return
        count = batch_size(coupling, batch)
        for node, values in run.steps(batch):
            for reading in wanted.get(node, {}).values():
                if not torch.isfinite(values[node]).all():
                    raise ScorerError(
                        f"method {method!r} expects finite activations, got NaN or infinity in {node.name!r} "
                        f"({node.meta.get('module', '?')}): look for overflow, or mask them in the model"
                    )
                yield reading, _by_sample(coupling, reading, values[node], count)[:left]
        left -= count


def _by_sample(coupling: Coupling, reading: Reading, value: Tensor, samples: int) -> Tensor:
    """Returns ``[samples, *positions, coordinates]``; a value that is the same for all samples is one sample."""
    prime, _ = coupling.captured.batch
    shape = list(coupling.captured.info[reading.source].shape)
    del shape[reading.dim]
    x = value.movedim(reading.dim, -1)
    if prime > 1:
        batch = next((dim for dim, size in enumerate(shape) if size % prime == 0), None)
    else:
        batch = 0 if shape and shape[0] % samples == 0 else None
    return x[None] if batch is None else x.movedim(batch, 0).unflatten(0, (samples, -1))


def as_shares(context: Context, found: Iterable[npt.NDArray[np.float64]]) -> dict[str, Tensor]:
    """Returns scores that compare between groups from what each value read gives each channel id (any scale)."""
    units = context.coupling.units
    total = context.zeros()
    for here in found:
        total[units] += here[units] / max(here[units].sum(), np.finfo(np.float64).tiny)
    return remaining_share(context.by_group(total), layers_that(context, read=False))


register_scorer("hrank", FeatureRank)

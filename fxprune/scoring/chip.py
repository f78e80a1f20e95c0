"""CHIP: how much of the nuclear norm of a layer's feature maps goes with a unit (Sui et al. 2021, arXiv 2110.13981)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fxprune._base.errors import ScorerError
from fxprune.algebra.axes import Axis, explicit
from fxprune.algebra.channels import Ids
from fxprune.scoring.engine.columns import table_of
from fxprune.scoring.engine.reads import Input, inputs_read
from fxprune.scoring.engine.shares import as_shares
from fxprune.scoring.scorer import Context, Scorer, register_scorer


@dataclass(frozen=True, slots=True)
class ChannelIndependence(Scorer):
    """The change of ``|A|_*``, A = [coordinates, positions], when a unit's rows are zeroed (Eq. 4), mean over samples.

    Each change is exact, an eigenvalue problem of a unit's own: a value of m coordinates, u units and p positions
    costs some ``u min(m, p)^3`` flops a sample. That is minutes a sample for wide layers with large maps, hence so few
    samples.

    The paper prunes every layer by a ratio of its own. Layers compare here as in `fxprune.scoring.variance`: by shares,
    weighed by what is left of their group.

    Attributes:
        samples: how many samples are used, the first ones.
    """

    samples: int = 8
    name: str = "chip"
    needs: tuple[str, ...] = ("activations",)
    per_cost: bool = True

    @torch.no_grad()
    def score(self, context: Context) -> dict[str, Tensor]:
        """Returns ``mean over samples of | |A|_* - |A without the unit's rows|_* |``, ``[units]``, as shares, over all values read.

        Raises:
            ScorerError: activations are not finite, or an axis is too long to be written out.
        """
        found: dict[Input, npt.NDArray[np.float64]] = {}
        rows: dict[Input, tuple[Ids, list[Tensor]]] = {}
        for reading, x in inputs_read(context, self.samples, self.name):
            if reading not in rows:
                rows[reading] = _rows(context, reading)
                found[reading] = np.zeros(len(rows[reading][0]))
            _, of_unit = rows[reading]
            for matrix in matrices(x, reading.axis):
                change = norm_changes(matrix, of_unit, context.memory_limit)
                found[reading] += change.cpu().numpy()
        return as_shares(context, ((rows[reading][0], changes) for reading, changes in found.items()))


def matrices(x: Tensor, axis: Axis) -> Tensor:
    """Returns one matrix for each sample, ``[samples, coordinates, positions]``; what never goes counts as a position.

    Traces x[sample, h, w, c], axis (c): [sample, c, h x w].  x[sample, token, 4 heads x 8]: [sample, 32, token].
    x[sample, c x h x w], as a flattened map: [sample, c, h x w].

    Args:
        x: ``[samples, *positions, coordinates of the axis]``.
        axis: what the last dimension is made of.
    """
    first = x.dim() - 1
    x = x.unflatten(-1, [factor.size for factor in axis])
    rows = [first + i for i, factor in enumerate(axis) if factor.labels is not None]
    x = x.movedim(rows, list(range(1, 1 + len(rows))))
    return x.flatten(1, len(rows)).flatten(2) if x.dim() > 1 + len(rows) else x.flatten(1)[:, :, None]


def norm_changes(matrix: Tensor, rows: Sequence[Tensor], memory_limit: int) -> Tensor:
    """Returns the change of the nuclear norm when some rows are zeroed, for each choice of rows, in float64.

    Singular values are the roots of the eigenvalues of the smaller Gram matrix, which loses those below 1e-8 of the
    largest.

    Args:
        matrix: ``[coordinates, positions]``.
        rows: for each choice the rows' numbers.
        memory_limit: bytes for the Gram matrices of the choices that are worked on at once.
    """
    matrix = matrix.double()
    of_rows = matrix.shape[0] < matrix.shape[1]
    gram = matrix @ matrix.T if of_rows else matrix.T @ matrix

    def without(chosen: Tensor) -> Tensor:
        if of_rows:
            return gram.index_fill(0, chosen, 0).index_fill(1, chosen, 0)
        gone = matrix[chosen]
        return gram - gone.T @ gone

    whole = _nuclear(gram)
    step = max(1, memory_limit // (4 * 8 * gram.numel()))
    left = [
        _nuclear(torch.stack([without(chosen.to(matrix.device)) for chosen in rows[start : start + step]]))
        for start in range(0, len(rows), step)
    ]
    return (whole - torch.cat(left)).abs() if left else matrix.new_zeros(0)


def _nuclear(gram: Tensor) -> Tensor:
    """Returns the nuclear norm of matrices from their Gram matrices."""
    values: Tensor = torch.linalg.eigvalsh(gram)
    return values.clamp_min(0).sqrt().sum(dim=-1)


def _rows(context: Context, reading: Input) -> tuple[Ids, list[Tensor]]:
    """Returns the units on an axis, by channel id, and the coordinates of each."""
    written = explicit(tuple(factor for factor in reading.axis if factor.labels is not None))
    if written is None:
        raise ScorerError(f"method 'chip': the axis of {reading.source.name!r} is too long to be written out")
    labels = context.coupling.channels.resolve(written)
    labels = np.where(np.isin(labels, context.coupling.units), labels, 0)
    channels, owner = np.unique(labels[labels > 0], return_inverse=True)
    rows = table_of(owner, np.nonzero(labels)[0], len(channels), -1)
    return channels, [torch.from_numpy(row[row >= 0]) for row in rows]


register_scorer("chip", ChannelIndependence)

"""How units of different groups compare: each as a share of what is left of its group when its turn comes.

LAMP (Lee et al. 2021, arXiv 2010.07611, Eq. 3) is the share ``s_u / sum of s_v over s_v >= s_u``: the last unit of a
group is worth the whole group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fxprune.algebra.channels import Ids
from fxprune.coupling.unit_scores import accumulate
from fxprune.scoring.scorer import Context

#: Scores count up to so many times this quantile of their group's: a few units of a transformer carry nearly all of a
#: layer's activations, up to 1e5 times the quantile, and would make all others look like nothing beside them.
_LIMIT, _QUANTILE = 4.0, 0.9


def without_outliers(rising: Tensor) -> Tensor:
    """Returns the scores of one group, which rise, ``[units]``, each at most four times the 0.9 quantile of those above 0."""
    positive = rising[rising > 0]
    return rising.clamp(max=_LIMIT * float(positive[int(_QUANTILE * (len(positive) - 1))])) if len(positive) else rising


def shares(rising: Tensor) -> Tensor:
    """Returns each score of one group, which rise, ``[units]``, as a share of itself and all that follow."""
    left = rising.flip(0).cumsum(0).flip(0)
    return rising / left.clamp_min(torch.finfo(rising.dtype).tiny)


def remaining_share(scores: Mapping[str, Tensor], beside: Mapping[str, float]) -> dict[str, Tensor]:
    """Returns each score, ``[units]`` a group, as a share of what is left of its group, outliers cut, times the group's whole.

    The whole says in how many layers the group matters, since its cost is that of all of them: the scores' sum, which
    counts the layers on the side that the criterion looks at (those that make the group, or those that read it), and
    ``beside``, which counts the other side (see `layers_that`).
    """
    result = {}
    for name, score in scores.items():
        order = score.argsort(stable=True)
        share = torch.empty_like(score)
        share[order] = shares(without_outliers(score[order]))
        result[name] = share * (score.sum() + beside[name])
    return result


def as_shares(
    context: Context, layers: Iterable[tuple[Ids, npt.NDArray[np.float64]]], *, made: bool = False
) -> dict[str, Tensor]:
    """Returns scores that compare between groups, ``[units]`` each: each layer's shares, added up, as `remaining_share`.

    Args:
        context: of the scorer.
        layers: the channel ids that each layer, or value read, knows, ``[n]``, each once, and what it gives each, ``[n]``;
            any scale, at least zero.
        made: the layers make the units; otherwise they read them.
    """
    total, is_unit = context.zeros(), np.zeros(len(context.coupling.channels), bool)
    is_unit[context.coupling.units] = True
    for channels, values in layers:
        here = np.where(is_unit[channels], values, 0.0)
        total[channels] += here / max(here.sum(), np.finfo(np.float64).tiny)
    return remaining_share(context.by_group(total), layers_that(context, read=made))


def layers_that(context: Context, *, read: bool) -> dict[str, float]:
    """Returns for each group how many layers read it, or make it: of each layer, the share that the group takes up."""
    total = context.zeros()
    for axis in context.coupling.axes:
        if axis.reads if read else axis.makes:
            accumulate(total, axis.labels, torch.full((len(axis.labels),), 1 / len(axis.labels)))
    return {name: float(share.sum()) for name, share in context.by_group(total).items()}

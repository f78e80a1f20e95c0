"""Scores of units: read by group from what a criterion returns, and written on the graph's nodes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fxprune._base.errors import ScorerError
from fxprune.coupling.coupling import Coupling

#: The score of every unit of a group that stays, whatever the budget.
STAYS = float("inf")


def unit_scores(coupling: Coupling, scores: Mapping[str, Tensor]) -> npt.NDArray[np.float64]:
    """Returns one score for each unit, ``[units]``, from those of each group, ``[units of the group]``.

    Raises:
        ScorerError: scores are missing, of the wrong length or not finite, unless the whole group `STAYS`.
    """
    if not isinstance(scores, Mapping):
        raise ScorerError(f"a scorer returns scores by the group's name, got {type(scores).__name__}")
    values = np.zeros(len(coupling.units))
    for group in coupling.groups:
        if group.name not in scores:
            raise ScorerError(f"no scores for group {group.name!r}; a scorer returns one tensor for every group")
        score = torch.as_tensor(scores[group.name]).detach().to("cpu", torch.float64).numpy()
        if score.shape != (len(group.units),):
            raise ScorerError(f"group {group.name!r} has {len(group.units)} units, got scores of shape {score.shape}")
        if not np.isfinite(score).all() and not (score == STAYS).all():
            raise ScorerError(f"group {group.name!r}: {int((~np.isfinite(score)).sum())} scores are not finite")
        values[group.units] = score
    return values


def annotate(coupling: Coupling, scores: npt.NDArray[np.float64]) -> None:
    """Writes the units' scores, ``[units]``, on the parameters' nodes: one for each coordinate of an axis."""
    per_channel = np.full(len(coupling.channels), np.nan)
    per_channel[coupling.units] = scores
    nodes = {str(node.target): node for node in coupling.values if node.op == "get_attr"}
    for node in nodes.values():
        node.meta.pop("fxprune", None)
    for axis in coupling.axes:
        values = np.full(len(axis.labels), np.nan)
        for column in axis.labels.T:
            values = np.fmin(values, per_channel[column])
        nodes[axis.tensor].meta.setdefault("fxprune", {})[axis.dim] = torch.from_numpy(values)


def accumulate(per_channel: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], values: Tensor) -> None:
    """Adds the value of each coordinate, ``[size]``, to the channels, ``[channels]``, in its label, ``[size, k]``."""
    column = values.detach().cpu().double().numpy()
    for k in range(labels.shape[1]):
        np.add.at(per_channel, labels[:, k], column)

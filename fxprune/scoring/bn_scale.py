"""Network slimming: the scale that batch norm gives a unit (Liu et al. 2017, arXiv 1708.06519, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from fxprune._base.errors import ScorerError
from fxprune.coupling.unit_scores import accumulate
from fxprune.ops.registry import bind, is_kind
from fxprune.scoring.engine.columns import flags_of
from fxprune.scoring.scorer import Context, Scorer, register_scorer


@dataclass(frozen=True, slots=True)
class BatchNormScale(Scorer):
    """The mean of ``|gamma|`` over the batch norm coordinates that lie on a unit, ranked as it is.

    As in the paper there is one ranking of raw scales for the whole network. The paper trains with an L1 penalty on the
    scales first; without it they say little. A unit that no batch norm scales gets the largest score there is.
    """

    name: str = "bn_scale"
    needs: tuple[str, ...] = ("weights",)
    per_cost: bool = False

    def score(self, context: Context) -> dict[str, Tensor]:
        """Returns ``mean |gamma|``, ``[units]``, over a unit's batch norms.

        Raises:
            ScorerError: no batch norm with a scale lies on any unit.
        """
        coupling = context.coupling
        total, count = context.zeros(), context.zeros()
        scales = _scales(coupling.captured.module)
        for axis in coupling.axes:
            if axis.tensor in scales:
                gamma = context.tensor(axis.tensor).double().abs()
                accumulate(total, axis.labels, gamma)
                accumulate(count, axis.labels, torch.ones_like(gamma))
        scaled = flags_of(coupling, coupling.units) & (count > 0)
        if len(coupling.units) and not scaled.any():
            raise ScorerError(
                f"method {self.name!r} expects batch norms whose scale lies on units that may go; of the {len(scales)} "
                "batch norms with a scale in this model none does: use another method, e.g. 'magnitude'"
            )
        mean = total / np.maximum(count, 1)
        return context.by_group(np.where(scaled, mean, mean[scaled].max(initial=0.0)))


def _scales(module: fx.GraphModule) -> set[str]:
    """Returns the names of the batch norms' scales."""
    norms = [node for node in module.graph.nodes if is_kind(node, "batch_norm")]
    weights = [bind(node).weight for node in norms]
    return {str(w.target) for w in weights if isinstance(w, fx.Node) and w.op == "get_attr"}


register_scorer("bn_scale", BatchNormScale)

"""Taylor: the first-order change of the loss when a unit is masked (Molchanov et al. 2017, arXiv 1611.06440, Eq. 8)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune._base.ranks import own, summed
from fxprune.scoring.engine.gradients import by_unit, gradients
from fxprune.scoring.scorer import Context, Scorer, register_scorer


@dataclass(frozen=True, slots=True)
class Taylor(Scorer):
    """The mean over samples of ``|sum over positions of activation x gradient|``, over all that reads a unit.

    The paper ranks all layers together after dividing each layer's scores by their Euclidean norm (section 2.2), and
    takes no account of cost; so does this.

    Attributes:
        normalise: divide a group's scores by their Euclidean norm; False ranks the raw change of the loss.
    """

    normalise: bool = True
    name: str = "taylor"
    needs: tuple[str, ...] = ("gradients",)
    per_cost: bool = False

    def score(self, context: Context) -> dict[str, Tensor]:
        """Returns, ``[units]``, ``mean over samples of |d loss / d mask of the unit|``; readers add up before the absolute value.

        Raises:
            CalibrationError: there are no targets, or they do not fit.
        """
        coupling = context.coupling
        total, count = torch.zeros(len(coupling.units), dtype=torch.float64), 0
        batches = (batch for _, batch in own(context.inputs.labelled(self.name)))
        for batch in gradients(coupling, batches, context.loss, gates=True):
            total += by_unit(coupling, batch.gates, batch.samples).abs().sum(dim=0).cpu()
            count += batch.samples
        total, samples = summed(total, torch.tensor([count]))
        mean = total / samples.clamp_min(1)
        scores = {group.name: mean[torch.from_numpy(group.units)] for group in coupling.groups}
        if not self.normalise:
            return scores
        return {name: s / s.norm().clamp_min(torch.finfo(s.dtype).tiny) for name, s in scores.items()}


register_scorer("taylor", Taylor)

"""The recoveries that come with fxprune, by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from fxprune._base.errors import RecoverySkippedWarning, outside
from fxprune.recovery.bases import rebased
from fxprune.recovery.compensate import compensate
from fxprune.recovery.cores import refitted
from fxprune.recovery.products import left_alone
from fxprune.recovery.protocol import Recovered, Recovery, RecoveryContext, register_recovery
from fxprune.recovery.reconstruct import reconstruct
from fxprune.recovery.reinit import not_resettable, reset_weights
from fxprune.recovery.sequential import sequential


@dataclass(frozen=True, slots=True)
class Fitted(Recovery):
    """New weights, biases and running means of the layers that lose columns, so that they make up for those.

    Attributes:
        fit: gives them, at full size.
        name: how it is called in messages.
        rebase: begin with heads in the basis in which what goes matters least (`fxprune.recovery.bases`).
    """

    fit: Callable[[RecoveryContext], Recovered]
    name: str = "fitted"
    rebase: bool = True

    def recover(self, context: RecoveryContext) -> Recovered:
        """Returns what was fitted, and the layers that could not be; warns of those that nothing makes up for."""
        if left := context.unreached:
            text = f"recovery {self.name!r} leaves layers that read removed channels as they are: {'; '.join(left)}"
            warnings.warn(text, RecoverySkippedWarning, stacklevel=outside())
        if not self.rebase and context.consumers and all(c.home is None for c in (*context.consumers, *context.gates)):
            text = f"recovery {self.name!r} changes nothing: no layer that reads removed channels has a bias or a batch norm to take its shift"
            warnings.warn(text, RecoverySkippedWarning, stacklevel=outside())
        unmade: list[str] = []
        if self.rebase:
            base, done = rebased(context)
            factors, more = refitted(context, base, done)
            unmade = left_alone(context, done | more)
            start = context.selection.with_tensors({**context.selection.tensors, **factors})
            context = replace(context, base=base, selection=start)
        found = self.fit(context)
        return replace(found, skipped=(*context.skipped, *unmade, *found.skipped))


@dataclass(frozen=True, slots=True)
class Reinit(Recovery):
    """All weights are drawn anew by their modules' own rule, once layers have their sizes, to be trained from scratch."""

    name: str = "reinit"
    anew: bool = True

    def recover(self, context: RecoveryContext) -> Recovered:
        """Returns nothing: what there is will be drawn anew."""
        return Recovered()

    def finish(self, pruned: nn.Module, seed: int) -> tuple[str, ...]:
        """Draws all weights anew; returns the parameters that no module can draw, and warns of them."""
        reset_weights(pruned, seed)
        left = tuple(f"{name}: no reset_parameters() draws it anew" for name in not_resettable(pruned))
        if left:
            text = f"recovery {self.name!r} leaves parameters as they are: {'; '.join(left[:5])}"
            more = f" and {len(left) - 5} more" if len(left) > 5 else ""
            warnings.warn(text + more, RecoverySkippedWarning, stacklevel=outside())
        return left


#: What a removed column brought on average goes into the bias (VBP, arXiv 2507.12988).
register_recovery("mean_shift", partial(Fitted, partial(compensate, covariance=False), "mean_shift", False))
#: Kept columns take over what they can predict of the removed ones in the dense model (OB2C, arXiv 2608.17657).
register_recovery("covariance", partial(Fitted, partial(compensate, covariance=True), "covariance"))
#: Layer after layer is regressed on what the pruned model really feeds it, with residual drift.
register_recovery("sequential", partial(Fitted, sequential, "sequential"))
#: Then every block learns to give the dense model's values, by gradient and without labels.
register_recovery("reconstruct", partial(Fitted, reconstruct, "reconstruct"))
register_recovery("reinit", Reinit)

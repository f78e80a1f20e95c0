"""The recoveries that come with fxprune, by name."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fxprune.recovery.compensate import compensate
from fxprune.recovery.protocol import Recovered, Recovery, RecoveryContext, register_recovery
from fxprune.recovery.reconstruct import reconstruct
from fxprune.recovery.reinit import not_resettable, reset_weights
from fxprune.recovery.sequential import sequential


@dataclass(frozen=True, slots=True)
class MeanShift(Recovery):
    """What a removed column brought on average goes into the bias (VBP, arXiv 2507.12988)."""

    name: str = "mean_shift"

    def recover(self, context: RecoveryContext) -> Recovered:
        """Returns shifted biases and running means."""
        return Recovered(compensate(context, covariance=False), context.skipped)


@dataclass(frozen=True, slots=True)
class Covariance(Recovery):
    """Kept columns take over what they can predict of the removed ones in the dense model (OB2C, arXiv 2608.17657)."""

    name: str = "covariance"

    def recover(self, context: RecoveryContext) -> Recovered:
        """Returns weights, biases and running means of every layer that loses columns."""
        return Recovered(compensate(context, covariance=True), context.skipped)


@dataclass(frozen=True, slots=True)
class Sequential(Recovery):
    """Layer after layer is regressed on what the pruned model really feeds it, with residual drift."""

    name: str = "sequential"

    def recover(self, context: RecoveryContext) -> Recovered:
        """Returns weights, biases and running means of every layer that loses columns."""
        return Recovered(sequential(context), context.skipped)


@dataclass(frozen=True, slots=True)
class Reconstruct(Recovery):
    """After `Sequential` every block learns to give the dense model's values, by gradient and without labels."""

    name: str = "reconstruct"

    def recover(self, context: RecoveryContext) -> Recovered:
        """Returns all parameters, or what `Sequential` gave where nothing better was learnt."""
        return Recovered(reconstruct(context, sequential(context)), context.skipped)


@dataclass(frozen=True, slots=True)
class Reinit(Recovery):
    """All weights are drawn anew by their modules' own rule, once layers have their sizes, to be trained from scratch."""

    name: str = "reinit"
    anew: bool = True

    def recover(self, context: RecoveryContext) -> Recovered:
        """Returns nothing: what there is will be drawn anew."""
        return Recovered()

    def finish(self, pruned: nn.Module, seed: int) -> tuple[str, ...]:
        """Draws all weights anew; returns the parameters that no module can draw."""
        reset_weights(pruned, seed)
        return tuple(f"{name}: no reset_parameters() draws it anew" for name in not_resettable(pruned))


for _recovery in (MeanShift, Covariance, Sequential, Reconstruct, Reinit):
    register_recovery(_recovery().name, _recovery)

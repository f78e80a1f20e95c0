"""The last stage: how close the result is to the dense model, on batches that recovery has not seen where there are any."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from fxprune._base.ranks import gathered
from fxprune.compiler.state import State
from fxprune.data.batch import Batch
from fxprune.data.holdout import Part
from fxprune.recovery.protocol import fits
from fxprune.reporting.fidelity import Reference
from fxprune.results.attached import attach
from fxprune.results.fidelity import Fidelity
from fxprune.scoring.causal import causal_loss

#: The criterion, and the recovery, that are advised where another one is used; and the recovery beyond that one.
_METHOD, _RECOVERY, _CLOSEST = "variance", "sequential", "reconstruct"


def is_causal(state: State) -> bool:
    """Returns whether the model's scores are for the next token, as its own loss or the data say."""
    return bool(state.shifts) or state.loss is causal_loss


@dataclass(slots=True, eq=False)
class Judge:
    """Compares results of one compilation, or of several, with the dense model.

    Args:
        state: as prepared: of the model as it was given.
        memory_limit: bytes of dense outputs that are kept from one result to the next.
        compared: compares the state at the end with the dense model, on these batches; by default calls of both models do.
    """

    state: State
    memory_limit: int = 0
    compared: Callable[[State, Iterable[Batch]], Fidelity] | None = None
    _reference: Reference = field(init=False)
    _data: Part[Batch] = field(init=False)

    def __post_init__(self) -> None:
        self._data = Part(self.state.batches, *self.state.split.judged)
        self._reference = Reference(self.state.module, self._data, self.memory_limit, is_causal(self.state))

    def __call__(self, found: State) -> State:
        """Returns the state at the end, its report with how close the result is; if that fails, with why."""
        with found.clock("judge"):
            fidelity = _why_not(found) or self._fidelity(found)
        seconds = {**found.report.seconds, "judge": found.clock.seconds["judge"]}
        report = replace(found.report, fidelity=fidelity, seconds=seconds)
        return replace(found, report=report, pruned=attach(found.pruned, report))

    def _fidelity(self, found: State) -> Fidelity:
        fidelity = self._reference.of(found.pruned) if self.compared is None else self.compared(found, self._data)
        if fidelity.why:
            return fidelity
        moved = any(gathered(self.state.batches.moved)) and self.state.split.data != "alone"
        seen = "shuffled" if moved else self.state.split.data
        return replace(fidelity, data=seen if fits(found.recovery) else "unfitted", advice=_advice(found))


def _advice(state: State) -> tuple[str, ...]:
    """Returns what has not been tried and may bring the outputs closer."""
    options, recovery = state.options, state.recovery
    advice = ["more calibration data"] if fits(recovery) else []
    if not {"activations", "gradients", "masked outputs"} & {*state.scorer.needs}:
        advice.append(f"method={_METHOD!r}")
    name = "" if recovery is None else recovery.name
    if name not in (_RECOVERY, _CLOSEST):
        advice.append(f"recover={_RECOVERY!r}")
    elif name == _RECOVERY and state.shelves is None:
        advice.append(f"recover={_CLOSEST!r}")
    return (*advice, "fine-tune", "a larger budget" if options.ratios is None else "smaller ratios")


def _why_not(state: State) -> Fidelity | None:
    """Returns why nothing can be compared, None if it can."""
    recovery = state.recovery
    if recovery is not None and recovery.anew:
        return Fidelity(why=f"not measured: recover={recovery.name!r} draws all weights anew, to be trained")
    if any(tensor.is_meta for tensor in (*state.module.parameters(), *state.module.buffers())):
        return Fidelity(why="not measured: the model is on the meta device and has no values")
    return None

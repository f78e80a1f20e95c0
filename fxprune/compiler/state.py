"""The state of a compilation: what is known on the way, filled in stage by stage and never changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from fxprune._base.shelf import Shelf
from fxprune.bridging.bridge import Bridged
from fxprune.budget.budget import Budget
from fxprune.budget.constraints import Constraints
from fxprune.budget.scope import counted_by
from fxprune.budget.solver import Solution
from fxprune.capturing.captured import Captured
from fxprune.capturing.inputs import CalibrationInputs
from fxprune.compiler.clock import Clock
from fxprune.compiler.options import Options
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.data.batch import Batch
from fxprune.data.batches import Batches
from fxprune.data.holdout import Split
from fxprune.homing.restoring import Way
from fxprune.latency.search import LatencySearch
from fxprune.recovery.protocol import Recovery
from fxprune.results.certificate import Certificate
from fxprune.results.record import Report
from fxprune.scoring.loss import Loss
from fxprune.scoring.scorer import Scorer

#: Stands where a stage has yet to put something.
LATER: Any = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """What is known of a compilation.

    Attributes:
        source: the model as it was given.
        module: what runs it.
        options: all of them, none ``"auto"`` but ``round_to``.
        scorer: the criterion.
        recovery: how what is kept makes up for what goes, if at all.
        constraints: what must stay.
        budget: upper bounds; None with ratios.
        batches: the calibration data.
        first: the batch that the result is verified on.
        split: which batches recovery learns from, and which the result is judged on.
        shelves: gives by name the shelf that new tensors go to; None where they stay in memory.
        shifts: whether the model's own loss is of the next token, as the report has it.
        loss: of the targets, where the caller gives none and the default is not the model's.
        clock: times the stages and shows them.
        notes: for the report.
        basis: that the model was given in first, if it was.
        before: the coupling of the model as it was given, where the one that is compiled has more parameters: biases, or tensors
            that were tied.
        captured: the flat graph; None where only parts of the model can be captured.
        parts: the names of those.
        held: tensors that must stay whole, and why, where the model is a step's and does not say so itself.
        inputs: the calibration data as the graph takes them.
        coupling: of the graph, blocks among its units if they are asked for.
        search: how a bound on the latency is met, if there is one.
        way: what is known of the original, where its class is to come back.
        scores: for each group's name a score for each unit.
        per_cost: whether they are divided by what a unit costs before units of different groups are compared.
        bridged: the graph that is left where layers on the only path went.
        solution: what goes of it.
        selection: the same, over recovered tensors.
        skipped: what recovery left alone, and why.
        pruned: the emitted module; in the end the model of its own class, if it is to come back.
        graph: the emitted module, then.
        certificate: what the comparison with the masked twin found, if it was made.
        report: of it all; attached to ``pruned``.
    """

    source: nn.Module | ExportedProgram
    module: nn.Module
    options: Options
    scorer: Scorer
    recovery: Recovery | None
    constraints: Constraints
    budget: Budget | None
    batches: Batches
    first: Batch
    split: Split
    clock: Clock
    shelves: Callable[[str], Shelf] | None = None
    shifts: bool | None = None
    loss: Loss | None = None
    notes: tuple[str, ...] = ()
    captured: Captured | None = None
    basis: str | None = None
    before: Coupling | None = None
    parts: tuple[str, ...] = ()
    held: Mapping[str, str] = field(default_factory=dict)
    inputs: CalibrationInputs = LATER
    coupling: Coupling = LATER
    search: LatencySearch | None = None
    way: Way = LATER
    scores: Mapping[str, Tensor] = LATER
    per_cost: bool = True
    bridged: Bridged = LATER
    solution: Solution = LATER
    selection: Selection = LATER
    skipped: tuple[str, ...] = ()
    pruned: nn.Module = LATER
    graph: nn.Module = LATER
    certificate: Certificate | None = None
    report: Report = LATER

    @property
    def original(self) -> Coupling:
        """The coupling of the model that shares are shares of."""
        return self.before or self.coupling

    @property
    def bounds(self) -> Budget | None:
        """The budget, in counts where its shares are of a model with fewer parameters than the one that is compiled."""
        if self.before is None or self.budget is None:
            return self.budget
        return self.budget.absolute(counted_by(self.before, self.budget).of(Selection.nothing(self.before).removed))

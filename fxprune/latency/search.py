"""The search for a model within a latency: solve under the predicted one, build, measure, correct, and solve again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from operator import itemgetter

from torch import nn

from fxprune._base.errors import BudgetError
from fxprune.bridging.bridge import Bridged
from fxprune.budget.budget import Budget
from fxprune.budget.constraints import Constraints
from fxprune.budget.depth import Solver
from fxprune.budget.solver import Solution
from fxprune.capturing.captured import Captured
from fxprune.coupling.coupling import Coupling
from fxprune.data.checks import device_of
from fxprune.latency.layout import layout_of
from fxprune.latency.predict import Calibration, LatencyBound, LatencyModel
from fxprune.latency.stopwatch import Stopwatch, stopwatch_of
from fxprune.latency.store import store_of
from fxprune.latency.table import Table
from fxprune.results.latency import Latency
from fxprune.rewriting.emission import emitted

#: Models that are built and measured at most before the best of them is taken.
ROUNDS = 5

#: The solver aims at this share of the limit, and a model that is measured between two others is taken at once: no closer to
#: the limit than ``SAFE``, so that it is met when the final model is measured again.
AIM, CLOSE, SAFE = 0.98, 0.95, 0.99

#: Shares of units removed, of the models that the table is calibrated against first: the two ends of the solver's way.
ANCHORS = (0.0, 1.0)

Answer = tuple[Bridged, Solution]


@dataclass(slots=True)
class LatencySearch:
    """Searches the largest model whose measured latency is within a budget.

    Attributes:
        times: what measures.
        budget: whose ``latency`` or ``latency_ms`` is to be met.
        table: of single operations.
        calibration: what whole models took.
        dense_ms: of the original, when it was measured first.
        predicted_ms: for the model that was chosen, before one of its shape was measured.
        aim: share of the limit that the solver stays below.
    """

    times: Stopwatch
    budget: Budget
    table: Table
    calibration: Calibration = field(default_factory=Calibration)
    dense_ms: float = 0.0
    predicted_ms: float = 0.0
    aim: float = AIM
    _models: dict[Coupling, LatencyModel] = field(default_factory=dict)

    def solve(self, solver: Solver) -> Answer:
        """Returns the largest model found whose measured latency is within the limit.

        If none of those measured is, the fastest of them: `measured` then says by how much it is over.

        Args:
            solver: chooses what goes of the captured model.

        Raises:
            BudgetError: not even the smallest model is predicted to be within the limit; says what that takes.
        """
        self.aim = AIM
        self._model(solver.coupling)
        anchors = [solver(None, ratios=share) for share in ANCHORS]
        whole, whole_ms = anchors[0], self._measure(anchors)[0]
        if self.budget.params is self.budget.macs is None and whole_ms <= self.limit_ms:
            self.predicted_ms = whole_ms
            return whole
        tried: dict[bytes, tuple[float, float, Answer]] = {}  # by what is removed: latency, as predicted, and of what
        while len(tried) < ROUNDS:
            answer = self._next(solver, bool(tried))
            if answer is None or (key := answer[1].removed.tobytes()) in tried:
                break
            predicted = self.bound(answer[0].coupling).predicted(answer[1].removed)
            ms = self._measure([answer])[0]
            tried[key] = ms, predicted, answer
            if CLOSE * self.limit_ms <= ms <= SAFE * self.limit_ms:
                break
        by_ms = sorted(tried.values(), key=itemgetter(0))
        safe, within = ([one for one in by_ms if one[0] <= share * self.limit_ms] for share in (SAFE, 1.0))
        _, self.predicted_ms, best = (safe or within or by_ms[:1])[-1]
        return best

    def _next(self, solver: Solver, tried: bool) -> Answer | None:
        """Returns what to build next; None where the prediction, by now corrected, leaves nothing that fits."""
        try:
            return solver(self.budget, latency=self.bound)
        except BudgetError:
            if tried:
                return None
            self.aim = 1.0  # no room to aim below the limit
            return solver(self.budget, latency=self.bound)

    def original_ms(self) -> float:
        """Measures the original and returns its milliseconds."""
        return self.times.models([])[0]

    @property
    def limit_ms(self) -> float:
        """What the model may take."""
        return self._limit(self.dense_ms)

    def bound(self, coupling: Coupling) -> LatencyBound:
        """Returns the bound for the model, or for what bridges have left of it."""
        return LatencyBound(self._model(coupling), self.calibration, self.aim * self.limit_ms)

    def measured(self, pruned: nn.Module) -> Latency:
        """Measures the model that came out, in turns with the original."""
        dense, ms = self.times.models([pruned])
        return Latency(
            dense_ms=dense,
            measured_ms=ms,
            predicted_ms=self.predicted_ms * (dense / self.dense_ms if self.budget.latency else 1.0),
            limit_ms=self._limit(dense),
            **asdict(self.times.setting),
        )

    def _limit(self, dense_ms: float) -> float:
        share = float(self.budget.latency or 1.0)
        return share * dense_ms if self.budget.latency_ms is None else float(self.budget.latency_ms)

    def _model(self, coupling: Coupling) -> LatencyModel:
        if coupling not in self._models:
            setting = self.times.setting
            layout = layout_of(coupling, setting.batch_size, fused=setting.runtime.fuses)
            self.table.fill(step.operation for step in layout.steps)
            self._models[coupling] = LatencyModel(layout, self.table)
        return self._models[coupling]

    def _measure(self, answers: Sequence[Answer]) -> list[float]:
        """Measures models and notes what they took, for the next prediction.

        For a share the times are those that the machine would have needed when the original was measured first.
        """
        dense, *found = self.times.models([emitted(solution.selection) for _, solution in answers])
        self.dense_ms = self.dense_ms or dense
        if self.budget.latency is not None:
            found = [ms * self.dense_ms / dense for ms in found]
        for (bridged, solution), ms in zip(answers, found, strict=True):
            self.calibration.add(self._model(bridged.coupling).sum(solution.removed), ms)
        return found


def search_of(
    model: nn.Module,
    captured: Captured,
    budget: Budget | None,
    constraints: Constraints,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> LatencySearch | None:
    """Returns what searches for the latency that a budget bounds, or None if it bounds none.

    Raises:
        BudgetError: the budget's device is not here, or the model does not take batches of its size.
    """
    if budget is None or not budget.bounds_latency:
        return None
    times = stopwatch_of(model, captured, budget.setting(device_of(model)))
    store = store_of(times.setting, cache_dir)
    return LatencySearch(
        times, budget, Table(times.operation, store, partial(constraints.multiple, 1), progress=progress)
    )

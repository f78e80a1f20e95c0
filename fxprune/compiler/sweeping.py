"""Sweep: several budgets and methods on one model, captured and coupled once and scored once a method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike
from typing import Any, Literal

import torch
from torch import nn
from torch.export import ExportedProgram
from tqdm import tqdm

from fxprune._base.clocks import log_time
from fxprune._base.defaults import MEMORY_LIMIT
from fxprune._base.errors import BudgetError, FxpruneError, ScorerError, VerificationError, brief
from fxprune._base.modes import at_full_speed, plain_modes, random_states_kept, untouched
from fxprune.budget.budget import Budget, as_budget
from fxprune.budget.cost import Cost, cost_model
from fxprune.compiler import stages
from fxprune.compiler.clock import Clock
from fxprune.compiler.homecoming import tie
from fxprune.compiler.judging import Judge
from fxprune.compiler.options import (
    AUTO,
    MODULE,
    Allocation,
    Basis,
    Form,
    MethodName,
    Options,
    RecoveryOption,
    UnitKind,
    spelled_out,
)
from fxprune.compiler.pipeline import on_parts
from fxprune.compiler.state import State
from fxprune.coupling.selection import Selection
from fxprune.data.batch import Batch
from fxprune.data.checks import check_weights, device_of
from fxprune.data.holdout import split_of
from fxprune.latency.measure import interleaved
from fxprune.recovery.protocol import Recovery, fits, recovery_of
from fxprune.reporting.pareto import FIDELITY, Point, Sweep, budget_text
from fxprune.results.fidelity import Fidelity
from fxprune.scoring.loss import Loss
from fxprune.scoring.scorer import Scorer, scorer_of


@spelled_out
@random_states_kept()
@plain_modes()
def sweep(  # noqa: D417  # the options are described as `Options` has them
    model: nn.Module | ExportedProgram,
    calib_data: Any,
    budgets: float | Budget | Iterable[float | Budget],
    methods: MethodName | str | Scorer | Iterable[MethodName | str | Scorer] = ("variance",),
    *,
    evaluate: Callable[[nn.Module], float] | None = None,
    latency: bool = False,
    allocation: Allocation = "curves",
    basis: Basis | None = None,
    units: UnitKind | Sequence[UnitKind] = ("channel", "expert", "head", "head_dim", "kv_group"),
    ignore: str | Sequence[str] = (),
    round_to: int | Literal["auto", "measure"] = AUTO,
    min_keep: int | Literal["auto"] = AUTO,
    recover: RecoveryOption | str | Recovery | None = AUTO,
    ridge: float | Literal["auto"] = AUTO,
    holdout: float = 0.1,
    allow_bias: bool = False,
    loss: Loss | None = None,
    form: Form = "graph",
    also: Sequence[Callable[..., Any]] = (),
    uniform: bool = False,
    forward_args: Callable[[Any], Any] | None = None,
    dynamic_shapes: Any = None,
    strict: bool = False,
    verify: bool = True,
    verify_dtype: torch.dtype | None = None,
    memory_limit: int = MEMORY_LIMIT,
    cache_dir: str | PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Sweep:
    """Compiles a model to every budget with every method, and compares what comes out.

    Each point is what `fxprune.compile` gives for its budget and method. The model is captured and coupled
    once and scored once a method, so that a point costs little more than its recovery. Models are not kept:
    compile the one that is chosen.

    Args:
        model: as `fxprune.compile` takes it, with values; it is left as it is.
        calib_data: batches, as `fxprune.compile` takes them; fidelity is measured on those that recovery does not see (``holdout``).
            They and their dense outputs are kept up to ``memory_limit`` bytes.
        budgets: shares of parameters, or budgets.
        methods: names or scorers.
        evaluate: gives a model's quality, higher is better; called with the dense model and each pruned one, in
            evaluation mode.
            By default points are compared by fidelity: the share of the dense outputs' variance that is left.
        latency: whether the milliseconds of a call with the first batch are measured, in turns with the dense
            model.
        (options)

    Returns:
        One point for each method and budget. A budget that is out of reach, a result that fails verification, or a method
        that does not take this model, is a point that says so; so is a model on which ``evaluate`` fails, with NaN as its value.

    Raises:
        BudgetError: no budget, or a malformed one.
        ScorerError: no method, or an unknown one.
        TypeError: ``evaluate`` is no function, or gives no number for the dense model.
        FxpruneError: whatever else `fxprune.compile` raises for this model and these data, if no point has a model.
    """
    options = Options.of(locals())
    wanted, scorers = _budgets(budgets), _scorers(methods)
    if evaluate is not None and not callable(evaluate):
        raise TypeError(f"evaluate: expected a function of a model, got {evaluate!r:.80}")
    for scorer in scorers:
        options.resolve(scorer)
    state = stages.prepare(model, calib_data, wanted[0], replace(options, method=scorers[0]))
    check_weights(state.module)
    recoveries = [recovery_of(options.resolve(scorer).recover) for scorer in scorers]
    state = replace(state, split=split_of(state.batches, holdout, fits=any(map(fits, recoveries))))
    closeness = Judge(state, memory_limit)
    judge = _Judge(state.module, state.first, closeness, evaluate, latency)
    points: list[Point] = []
    with tqdm(
        total=len(scorers) * len(wanted), desc="fxprune sweep", unit="point", disable=None if progress else True
    ) as bar:
        with state.clock("capture"):
            state = _coupled(state)
        for scorer in scorers:
            for budget, make in _ways(stages.with_method(state, options, scorer), wanted):
                points.append(judge.point(scorer.name, budget, make))
                bar.update()
                if progress:
                    log_time(f"{scorer.name}, {budget_text(budget)}", points[-1].seconds)
    if judge.failures and all(point.report is None for point in points):
        raise judge.failures[0]
    return Sweep(
        points=tuple(points),
        before=_before(points, state),
        dense_value=judge.dense_value,
        dense_ms=judge.dense_ms,
        quality_name=FIDELITY if evaluate is None else "value",
    )


def _coupled(state: State) -> State:
    """Returns what all points have in common; parts of a model are each captured anew."""
    state = stages.capture(state)
    if state.captured is None:
        return state
    state = stages.couple(state)
    return tie(state) if state.options.form == MODULE else state


def _ways(state: State, budgets: Sequence[Budget]) -> Iterator[tuple[Budget, Callable[[], State]]]:
    """Yields each budget with what compiles the model to it, or raises why the method scores nothing; scored once."""
    try:
        if state.captured is not None:
            with Clock(state.options.progress)(f"score by {state.scorer.name}"):
                state = stages.score(state)
    except FxpruneError as error:
        yield from ((budget, partial(_fail, error)) for budget in budgets)
        return
    for budget in budgets:
        yield budget, partial(_compiled, replace(state, budget=budget, clock=Clock(False)))


def _fail(error: FxpruneError) -> State:
    raise error


def _compiled(state: State) -> State:
    if state.captured is None:
        return on_parts(replace(state, options=replace(state.options, progress=False)))
    state = replace(stages.widths(state), options=replace(state.options, progress=False))
    return stages.from_scored(stages.latency_search(state))


@dataclass(slots=True, eq=False)
class _Judge:
    """Makes a model and says how good and how fast it is."""

    dense: nn.Module
    first: Batch
    closeness: Judge
    evaluate: Callable[[nn.Module], float] | None
    latency: bool
    dense_value: float | None = None
    dense_ms: float | None = None
    failures: list[FxpruneError] = field(default_factory=list)

    def point(self, method: str, budget: Budget, make: Callable[[], State]) -> Point:
        if self.evaluate is not None and self.dense_value is None:
            self.dense_value = _value(self.evaluate, self.dense)
        start = time.perf_counter()
        try:
            done = self.closeness(make())
        except FxpruneError as error:
            if not isinstance(error, (BudgetError, VerificationError)):
                self.failures.append(error)
            return Point(method=method, budget=budget, why=str(error), seconds=time.perf_counter() - start)
        seconds = time.perf_counter() - start
        pruned, found, close = done.pruned, done.report, done.report.fidelity or Fidelity()
        value, why = self._value_or_why(pruned)
        ms, ms_error = self._milliseconds(pruned) if self.latency else (None, None)
        return Point(
            method=method,
            budget=budget,
            seconds=seconds,
            verified=found.verified,
            report=found,
            cost=Cost(found.params[1], found.macs[1], found.bytes[1]),
            fidelity=math.nan if close.explained is None else close.explained,
            agreement=close.agreement,
            deviation=close.deviation,
            value=value,
            why=why,
            latency_ms=ms,
            latency_error_ms=ms_error,
        )

    def _value_or_why(self, pruned: nn.Module) -> tuple[float | None, str]:
        """Returns what ``evaluate`` gives; or NaN, and how it failed: the points that took so long are kept."""
        try:
            return None if self.evaluate is None else _value(self.evaluate, pruned), ""
        except Exception as error:  # whatever a user's function raises
            return math.nan, f"evaluate fails on the model: {brief(error)}"

    def _milliseconds(self, pruned: nn.Module) -> tuple[float, float]:
        """Returns a call's milliseconds in proportion to the dense model's, timed in turns with it, and their standard error."""
        args, kwargs = self.first.args, self.first.kwargs
        device = str(device_of(self.dense))
        with at_full_speed(self.dense, args, kwargs), at_full_speed(pruned, args, kwargs):
            calls = [partial(model, *args, **kwargs) for model in (self.dense, pruned)]
            dense, mine = interleaved(calls, device=device)
        self.dense_ms = self.dense_ms or dense.ms
        ms = self.dense_ms * mine.beside(dense)
        return ms, ms * mine.error_beside(dense)


def _budgets(budgets: Any) -> list[Budget]:
    several = isinstance(budgets, Iterable) and not isinstance(budgets, str)
    found = [as_budget(budget) for budget in (budgets if several else [budgets])]
    if not found:
        raise BudgetError("budgets: expected at least one, such as [0.75, 0.5], got none")
    return found


def _scorers(methods: Any) -> list[Scorer]:
    several = isinstance(methods, Iterable) and not isinstance(methods, str)
    found = [scorer_of(method) for method in (methods if several else [methods])]
    if not found:
        raise ScorerError("methods: expected at least one, such as ['variance'], got none")
    return found


def _before(points: Sequence[Point], state: State) -> Cost:
    if state.captured is not None:
        return cost_model(state.original).of(Selection.nothing(state.original).removed)
    for point in points:
        if point.report is not None:
            return Cost(point.report.params[0], point.report.macs[0], point.report.bytes[0])
    raise BudgetError(f"none of the {len(points)} points has a model; the first: {points[0].why}")


def _value(evaluate: Callable[[nn.Module], float], model: nn.Module) -> float:
    with untouched(model, training=False):
        found = evaluate(model)
    try:
        return float(found)
    except (TypeError, ValueError):
        raise TypeError(f"evaluate: expected a number for the model's quality, got {found!r:.80}") from None

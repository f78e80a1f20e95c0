"""Sweep: several budgets and methods on one model, captured and coupled once and scored once a method."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from tqdm import tqdm

from fxprune._base.errors import BudgetError, ScorerError, VerificationError
from fxprune._base.modes import evaluating, untouched
from fxprune.budget.budget import Budget, as_budget
from fxprune.budget.cost import Cost, cost_model
from fxprune.capturing.inputs import CalibrationInputs
from fxprune.capturing.source import runnable
from fxprune.compiler.api import compile
from fxprune.compiler.arguments import check_types, constraints_of
from fxprune.compiler.finish import Job, finish
from fxprune.compiler.islands import capture_or_parts
from fxprune.compiler.progress import Stages
from fxprune.coupling.blocks import with_blocks
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.interpreter import couple
from fxprune.data.batch import Batch
from fxprune.data.batches import Batches
from fxprune.data.checks import check_weights, device_of, probe
from fxprune.latency.measure import interleaved
from fxprune.latency.start import liked_widths, meeting_of
from fxprune.recovery.recovery import check_recovery
from fxprune.reporting.fidelity import Reference
from fxprune.reporting.pareto import FIDELITY, Point, Sweep
from fxprune.reporting.record import report
from fxprune.scoring import Scorer, score, scorer_of
from fxprune.scoring.loss import Loss


def sweep(
    model: nn.Module | ExportedProgram,
    calib_data: Any,
    budgets: float | Budget | Iterable[float | Budget],
    methods: str | Scorer | Iterable[str | Scorer] = ("variance",),
    *,
    evaluate: Callable[[nn.Module], float] | None = None,
    latency: bool = False,
    units: str | Sequence[str] = ("channel", "expert", "head", "head_dim", "kv_group"),
    ignore: str | Sequence[str] = (),
    round_to: int | Literal["auto"] = 1,
    min_keep: int | Literal["auto"] = "auto",
    recover: str | None = "auto",
    ridge: float = 1e-2,
    loss: Loss | None = None,
    forward_args: Callable[[Any], Any] | None = None,
    dynamic_shapes: Any = None,
    strict: bool = False,
    verify: bool = True,
    verify_dtype: torch.dtype | None = None,
    memory_limit: int = 2 << 30,
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
        calib_data: batches, as `fxprune.compile` takes them; fidelity is measured on all of them.
        budgets: shares of parameters, or budgets.
        methods: names or scorers.
        evaluate: gives a model's quality, higher is better; called with the dense model and each pruned one, in
            evaluation mode.
            By default points are compared by fidelity: the share of the dense outputs' variance that is left.
        latency: whether the milliseconds of a call with the first batch are measured, in turns with the dense
            model.
        units: as `fxprune.compile` takes it, like all that follow.
        ignore: the same.
        round_to: the same.
        min_keep: the same.
        recover: the same.
        ridge: the same.
        loss: the same.
        forward_args: the same.
        dynamic_shapes: the same.
        strict: the same.
        verify: the same.
        verify_dtype: the same.
        memory_limit: the same; batches and dense outputs are kept up to so many bytes.
        cache_dir: the same.
        seed: the same.
        progress: the same; one bar counts the points.

    Returns:
        One point for each method and budget. A budget that is out of reach, or a result that fails
        verification, is a point that says so.

    Raises:
        BudgetError: no budget, or a malformed one.
        ScorerError: no method, or an unknown one.
        TypeError: ``evaluate`` is no function, or gives no number.
        FxpruneError: whatever else `fxprune.compile` raises for this model and these data.
    """
    wanted = _budgets(budgets)
    scorers = _scorers(methods)
    check_types(model, forward_args, verify_dtype, seed)
    if evaluate is not None and not callable(evaluate):
        raise TypeError(f"evaluate: expected a function of a model, got {evaluate!r:.80}")
    kinds = constraints_of(units, ignore, round_to, 1).kinds
    settings: list[tuple[int, str | None]] = []
    for scorer in scorers:
        least = scorer.defaults.get("min_keep", 1) if min_keep == "auto" else min_keep
        how = scorer.defaults.get("recover", "covariance") if recover == "auto" else recover
        check_recovery(how, ridge, memory_limit)
        constraints_of(units, ignore, round_to, least)
        settings.append((least, how))

    module = runnable(model)
    batches = Batches(calib_data, device=device_of(module), forward_args=forward_args)
    first = batches.first()
    check_weights(module)
    probe(module, first)
    again = partial(
        compile, model, calib_data, units=units, ignore=ignore, round_to=round_to, ridge=ridge, loss=loss,
        strict=strict, forward_args=forward_args, dynamic_shapes=dynamic_shapes, verify=verify,
        verify_dtype=verify_dtype, memory_limit=memory_limit, cache_dir=cache_dir, seed=seed, progress=False,
    )  # fmt: skip
    judge = _Judge(module, first, Reference(module, batches, memory_limit), evaluate, latency)
    points: list[Point] = []
    bar = tqdm(total=len(scorers) * len(wanted), desc="fxprune sweep", unit="point", disable=None if progress else True)
    with bar:
        shared = _Shared.of(model, module, batches, dynamic_shapes, strict, "block" in kinds)
        for scorer, (least, how) in zip(scorers, settings, strict=True):
            make: Callable[[Budget], nn.Module]
            if shared is None:
                make = partial(again, method=scorer, min_keep=least, recover=how)
            else:
                scores = score(
                    shared.coupling, shared.inputs, scorer, seed, loss=loss, memory_limit=memory_limit,
                    progress=progress, cache_dir=cache_dir,
                )  # fmt: skip
                job = Job(
                    coupling=shared.coupling, inputs=shared.inputs, first=first,
                    constraints=constraints_of(units, ignore, round_to, least), recover=how, ridge=ridge,
                    memory_limit=memory_limit, verify=verify, verify_dtype=verify_dtype, seed=seed,
                )  # fmt: skip
                make = partial(shared.finished, job, scorer, scores, auto=round_to == "auto", cache_dir=cache_dir)
            for budget in wanted:
                points.append(judge.point(scorer.name, budget, make))
                bar.update()
    return Sweep(
        points=tuple(points), before=_before(points, shared), dense_value=judge.dense_value,
        dense_ms=judge.dense_ms,
        quality_name=FIDELITY if evaluate is None else "value",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class _Shared:
    """What all points have in common: the captured model, coupled."""

    module: nn.Module
    coupling: Coupling
    inputs: CalibrationInputs

    @classmethod
    def of(
        cls, model: nn.Module | ExportedProgram, module: nn.Module, batches: Batches, dynamic_shapes: Any,
        strict: bool, blocks: bool,
    ) -> _Shared | None:  # fmt: skip
        """Captures and couples; None where the model has to be taken in parts, each captured for itself."""
        captured, _ = capture_or_parts(model, batches, dynamic_shapes, strict)
        if captured is None:
            return None
        coupling = couple(captured, strict=strict)
        return cls(module, with_blocks(coupling) if blocks else coupling, CalibrationInputs(captured, batches))

    def finished(
        self, job: Job, scorer: Scorer, scores: Mapping[str, Tensor], budget: Budget, *, auto: bool,
        cache_dir: str | PathLike[str] | None,
    ) -> nn.Module:  # fmt: skip
        """Returns the model for one budget."""
        notes: tuple[str, ...] = ()
        if auto:
            constraints, notes = liked_widths(self.module, self.coupling, budget, job.constraints)
            job = replace(job, constraints=constraints)
        captured = self.coupling.captured
        meeting = meeting_of(self.module, captured, budget, job.constraints, cache_dir=cache_dir)
        return finish(job, scorer, scores, budget, Stages(False), meeting=meeting, notes=notes)


@dataclass(slots=True, eq=False)
class _Judge:
    """Makes a model and says how good and how fast it is."""

    dense: nn.Module
    first: Batch
    reference: Reference
    evaluate: Callable[[nn.Module], float] | None
    latency: bool
    dense_value: float | None = None
    dense_ms: float | None = None

    def point(self, method: str, budget: Budget, make: Callable[[Budget], nn.Module]) -> Point:
        if self.evaluate is not None and self.dense_value is None:
            self.dense_value = _value(self.evaluate, self.dense)
        start = time.perf_counter()
        try:
            pruned = make(budget)
        except (BudgetError, VerificationError) as error:
            return Point(method=method, budget=budget, why=str(error), seconds=time.perf_counter() - start)
        seconds = time.perf_counter() - start
        found = report(pruned)
        close = self.reference.of(pruned)
        return Point(
            method=method, budget=budget, seconds=seconds, verified=found.verified, report=found,
            cost=Cost(found.params[1], found.macs[1], found.bytes[1]), fidelity=close.explained,
            agreement=close.agreement, value=None if self.evaluate is None else _value(self.evaluate, pruned),
            latency_ms=self._milliseconds(pruned) if self.latency else None,
        )  # fmt: skip

    def _milliseconds(self, pruned: nn.Module) -> float:
        """Returns a call's milliseconds in proportion to the dense model's, timed in turns with it."""
        args, kwargs = self.first.args, self.first.kwargs
        device = str(device_of(self.dense))
        with evaluating(self.dense), evaluating(pruned):
            calls = [partial(model, *args, **kwargs) for model in (self.dense, pruned)]
            dense, mine = interleaved(calls, device=device)
        self.dense_ms = self.dense_ms or dense.ms
        return self.dense_ms * mine.beside(dense)


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


def _before(points: Sequence[Point], shared: _Shared | None) -> Cost:
    if shared is not None:
        return cost_model(shared.coupling).of(np.zeros(len(shared.coupling.channels), bool))
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

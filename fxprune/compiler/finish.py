"""Finish: from scores to a smaller model that is verified, with its report."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fxprune._base.errors import VerificationError
from fxprune.budget.budget import Budget
from fxprune.budget.constraints import Constraints
from fxprune.budget.depth import solve_with_bridges
from fxprune.capturing.inputs import CalibrationInputs
from fxprune.coupling.coupling import Coupling
from fxprune.data.batch import Batch
from fxprune.latency.search import Meeting
from fxprune.recovery.recovery import recover as recover_weights
from fxprune.recovery.reinit import not_resettable, reset_weights
from fxprune.reporting.building import make_plan, make_report, score_summary
from fxprune.reporting.record import attach
from fxprune.rewriting.emission import emit
from fxprune.rewriting.slicing import slice_graph
from fxprune.scoring import Scorer
from fxprune.twin.certificate import Certificate
from fxprune.twin.certificate import verify as verify_against_twin


class Timed(Protocol):
    """Times stages by name."""

    @property
    def seconds(self) -> Mapping[str, float]:
        """Stage -> seconds."""
        ...

    def __call__(self, name: str) -> AbstractContextManager[None]:
        """Runs one stage."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """What a model is pruned with, whatever the method and the budget.

    Attributes:
        coupling: of the captured model.
        inputs: calibration data for it.
        first: the batch that the result is verified on.
        constraints: what must stay.
        recover: as `fxprune.compile` takes it, the method's own choice made.
        ridge: damping of the recovery.
        memory_limit: bytes for statistics and values that are alive.
        verify: whether the result is compared with its masked twin.
        verify_dtype: the precision of that; None for the model's own, and float64 where that leaves doubt.
        seed: for what is drawn.
    """

    coupling: Coupling
    inputs: CalibrationInputs
    first: Batch
    constraints: Constraints
    recover: str | None
    ridge: float
    memory_limit: int
    verify: bool
    verify_dtype: torch.dtype | None
    seed: int


def finish(
    job: Job, scorer: Scorer, scores: Mapping[str, Tensor], budget: Budget | None, stages: Timed, *,
    ratios: float | Mapping[str, float] | None = None, meeting: Meeting | None = None, notes: tuple[str, ...] = (),
) -> nn.Module:  # fmt: skip
    """Returns the smaller model, its report attached: solve, recover, rewrite, emit, verify.

    Args:
        job: the model and all that does not depend on the budget.
        scorer: what scored.
        scores: for each group's name a score for each unit.
        budget: upper bounds, or None with ``ratios``.
        stages: times what is done.
        ratios: as `fxprune.compile` takes it.
        meeting: how a bound on the latency is met, if there is one.
        notes: for the report.

    Raises:
        BudgetError: the budget is out of reach.
        NothingToPruneError: no channel may go.
        VerificationError: the result differs from its masked twin.
    """
    with stages("solve"):
        decide: Callable[..., Any] = partial(
            solve_with_bridges, job.coupling, scores, constraints=job.constraints, per_cost=scorer.per_cost,
            bridges=job.recover == "reinit", seed=job.seed,
        )  # fmt: skip
        bridged, solution = decide(budget, ratios=ratios) if meeting is None else meeting.solve(decide, job.coupling)
        left, removed = bridged.coupling, solution.removed
    with stages("recover"):
        recovery = recover_weights(
            left, removed, job.inputs, job.recover, ridge=job.ridge, memory_limit=job.memory_limit
        )
    with stages("rewrite"):
        pruned = emit(left.captured, slice_graph(left, removed, recovery.tensors))
    certificate: Certificate | None = None
    with stages("verify"):
        if job.verify:
            check = partial(verify_against_twin, left, removed, pruned, tensors=recovery.tensors)
            certificate = check((job.first.args, job.first.kwargs), dtype=job.verify_dtype)
            if certificate.verified is not True and job.verify_dtype is None:
                certificate = check((job.first.args, job.first.kwargs), dtype=torch.float64)  # rounding, or a fault?
            insist(certificate)
    skipped = recovery.skipped
    if job.recover == "reinit":
        reset_weights(pruned, job.seed)
        skipped = tuple(f"{name}: no reset_parameters() draws it anew" for name in not_resettable(pruned))
    plan = make_plan(job.coupling, bridged, solution, budget, scorer.name, operator.index(job.seed))
    summary = score_summary(
        job.coupling, bridged, solution, scores, budget, constraints=job.constraints,
        per_cost=scorer.per_cost, bound=None if meeting is None else meeting.bound(job.coupling),
    )  # fmt: skip
    latency = None
    if meeting is not None:
        with stages("latency"):
            latency = meeting.measured(pruned)
    found = make_report(job.coupling, bridged, solution, plan, certificate, skipped, stages.seconds, summary)
    return attach(pruned, replace(found, latency=latency, notes=(*found.notes, *notes)))


def insist(certificate: Certificate) -> None:
    """Makes sure that a comparison with the masked twin did not fail.

    Raises:
        VerificationError: it did.
    """
    if certificate.verified is False:
        raise VerificationError(
            f"the pruned model failed verification: error {certificate.max_error:.2e} in "
            f"{certificate.dtype}, tolerance {certificate.tolerance:.0e}: {certificate.note}. If it does not "
            "say why, this is a bug of fxprune: please report the model."
        )

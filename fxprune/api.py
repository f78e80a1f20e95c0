"""The compiler: capture, couple, score, solve, recover, rewrite, emit, verify."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from tqdm import tqdm

from fxprune.branches import vanishing_groups
from fxprune.budget import Budget, as_budget
from fxprune.capture import capture
from fxprune.captured_inputs import CalibrationInputs
from fxprune.cost import Cost, cost_model
from fxprune.coupling import couple
from fxprune.data import Batches, check_weights, device_of, probe
from fxprune.errors import BudgetError, VerificationError
from fxprune.plan import Plan, check_fits
from fxprune.record import make_plan, make_report, removed_by, shapes_of
from fxprune.recover import recover as recover_weights
from fxprune.rewrite.emit import emit
from fxprune.rewrite.pruned import PrunedModule
from fxprune.rewrite.slice import slice_graph
from fxprune.scores import Scorer, score, scorer_of
from fxprune.solve import Constraints, Solution, solve
from fxprune.verify import Certificate
from fxprune.verify import verify as verify_against_twin

#: Stands for "whatever the method prefers".
AUTO: Literal["auto"] = "auto"


def compile(
    model: nn.Module,
    calib_data: Any,
    budget: float | Budget | None = None,
    *,
    method: str | Scorer = "variance",
    ratios: float | Mapping[str, float] | None = None,
    units: tuple[str, ...] = ("channel", "head", "head_dim"),
    ignore: tuple[str, ...] | list[str] = (),
    round_to: int = 1,
    min_keep: int = 1,
    recover: str | None = AUTO,
    ridge: float = 1e-2,
    forward_args: Callable[[Any], Any] | None = None,
    dynamic_shapes: Any = None,
    strict: bool = False,
    verify: bool = True,
    verify_dtype: torch.dtype | None = None,
    memory_limit: int = 2 << 30,
    seed: int = 0,
    progress: bool = True,
) -> PrunedModule:
    """Returns a smaller model that computes what the original computes without the removed channels.

    Args:
        model: any module that ``torch.export`` can capture; it is left bit-identical.
        calib_data: batches, gone through several times: a DataLoader, a list, a tensor. A batch is a tensor,
            ``(inputs, targets)`` or a dict of keyword arguments.
        budget: the share of parameters to keep, in (0, 1], or a `Budget`; None with ``ratios``.
        method: the criterion: a registered name (``"variance"``, ``"magnitude"``, ``"l1"``, ``"l2"``, ``"random"``) or a
            `Scorer`.
        ratios: the share of units to remove from every group, or by layer pattern, instead of a budget.
        units: the kinds of unit that may go.
        ignore: ``fnmatch`` patterns of layers whose channels all stay.
        round_to: kept channels come in multiples of this.
        min_keep: channels that every group keeps at least; with 0 whole residual branches may go.
        recover: ``"covariance"``, ``"sequential"``, ``"mean_shift"``, None, or ``"auto"`` for the method's own choice.
        ridge: damping of ``"covariance"`` and ``"sequential"``, as a share of the mean variance of a layer's inputs; more
            of it helps where calibration data are few or tokens have outliers.
        forward_args: makes ``(args, kwargs)`` of a batch that has another form.
        dynamic_shapes: as `torch.export.export` takes it; the batch is dynamic by default.
        strict: raise at an op without a rule instead of freezing what it touches.
        verify: compare the result with its masked twin on the first batch.
        verify_dtype: the precision of that comparison; by default the model's own, and float64 where that leaves doubt.
        memory_limit: bytes that recovery may use for statistics.
        seed: for methods that draw.
        progress: show a progress bar on a terminal.

    Raises:
        CaptureError: the model cannot be captured; names module and line.
        CalibrationError: the data or the weights are unusable.
        BudgetError: the budget is malformed or out of reach; says the smallest that can be reached.
        NothingToPruneError: no channel may go.
        ScorerError: an unknown method or unusable scores.
        UnsupportedOpError: under ``strict``, an op without a rule.
        VerificationError: the result differs from its masked twin: a bug of fxprune, never a wrong model returned.
    """
    scorer = scorer_of(method)
    wanted = _wanted(budget, ratios)
    constraints = Constraints(
        tuple(units), tuple(ignore), _positive("round_to", round_to, 1), _positive("min_keep", min_keep, 0)
    )
    how = scorer.defaults.get("recover", "covariance") if recover == AUTO else recover
    stages = Stages(progress)

    with stages("check"):
        batches = Batches(calib_data, device=device_of(model), forward_args=forward_args)
        check_weights(model)
        first = batches.first()
        probe(model, first)
    with stages("capture"):
        others = [(batch.args, batch.kwargs) for batch in batches.shapes(among=16)]  # what varies is dynamic
        captured = capture(model, first.args, first.kwargs, dynamic_shapes=dynamic_shapes, batches=others)
        inputs = CalibrationInputs(captured, batches)
    with stages("couple"):
        coupling = couple(captured, strict=strict)
    with stages("score"):
        scores = score(coupling, inputs, scorer, seed)
    with stages("solve"):
        vanishing = vanishing_groups(coupling, coupling.groups) if min_keep == 0 else {}
        solution = solve(
            coupling, scores, wanted, ratios=ratios, constraints=constraints, vanishing=vanishing,
            model=cost_model(coupling, vanishing), per_cost=scorer.per_cost,
        )  # fmt: skip
    with stages("recover"):
        recovery = recover_weights(
            coupling, solution.removed, inputs, how, ridge=ridge, memory_limit=memory_limit
        )
    with stages("rewrite"):
        pruned = emit(captured, slice_graph(coupling, solution.removed, recovery.tensors))
    with stages("verify"):
        certificate = None
        if verify:
            check = partial(verify_against_twin, coupling, solution.removed, pruned, tensors=recovery.tensors)
            certificate = check((first.args, first.kwargs), dtype=verify_dtype)
            if certificate.verified is not True and verify_dtype is None:
                certificate = check((first.args, first.kwargs), dtype=torch.float64)  # rounding, or a fault?
            _insist(certificate)
    plan = make_plan(coupling, solution, wanted, scorer.name, seed)
    pruned.record = make_report(coupling, solution, plan, certificate, recovery.skipped, stages.seconds)
    return pruned


def apply(model: nn.Module, plan: Plan) -> PrunedModule:
    """Applies a plan to another instance of the architecture that it was made for; weights are sliced, not recovered.

    Raises:
        PlanError: the plan does not fit this model.
    """
    check_fits(plan, model)
    device = device_of(model)
    args, kwargs = plan.example.call(model, device)
    grown = plan.example.call(model, device, grow=1)
    captured = capture(model, args, kwargs, batches=[grown])
    coupling = couple(captured)
    check_fits(plan, shapes_of(captured))
    removed = removed_by(coupling, plan)
    pruned = emit(captured, slice_graph(coupling, removed))
    solution = Solution(removed, coupling.units_of(removed), Cost(**plan.before), Cost(**plan.after))
    pruned.record = make_report(coupling, solution, plan, None, (), {})
    return pruned


def _wanted(budget: float | Budget | None, ratios: Any) -> Budget | None:
    if budget is None and ratios is None:
        raise BudgetError(
            "give a budget, such as 0.5 to keep half of the parameters, or ratios by layer; got neither"
        )
    return None if budget is None else as_budget(budget)


def _positive(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")
    return value


def _insist(certificate: Certificate) -> None:
    if certificate.verified is False:
        raise VerificationError(
            f"the pruned model differs from its masked twin: error {certificate.max_error:.2e} in {certificate.dtype}, "
            f"tolerance {certificate.tolerance:.0e} ({certificate.note}). This is a bug of fxprune: please report the model."
        )


@dataclass(slots=True)
class Stages:
    """Names and times the stages, with a bar on a terminal."""

    progress: bool
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Runs one stage."""
        start = time.perf_counter()
        with tqdm(
            total=1, desc=f"fxprune {name}", leave=False, disable=None if self.progress else True
        ) as bar:
            yield
            bar.update()
        self.seconds[name] = time.perf_counter() - start

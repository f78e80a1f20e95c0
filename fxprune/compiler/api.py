"""The compiler: capture, couple, score, solve, recover, rewrite, emit, verify."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from fxprune.bridging.bridge import Bridged
from fxprune.budget.budget import Budget
from fxprune.budget.cost import Cost, cost_model
from fxprune.budget.solver import Solution
from fxprune.capturing.inputs import CalibrationInputs
from fxprune.capturing.source import runnable, unwrapped
from fxprune.compiler.arguments import check_steps, check_types, constraints_of, target_of
from fxprune.compiler.finish import Job, finish, insist
from fxprune.compiler.islands import IslandData, Islands, capture_or_parts
from fxprune.compiler.progress import Stages
from fxprune.compiler.put_back import put_back
from fxprune.compiler.steps import at_full_size, in_steps
from fxprune.coupling.blocks import with_blocks
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.interpreter import couple
from fxprune.data.batch import Batch
from fxprune.data.batches import Batches
from fxprune.data.checks import check_weights, device_of, probe, without_values
from fxprune.latency.start import liked_widths, meeting_of
from fxprune.recovery.recovery import check_recovery
from fxprune.reporting.building import make_report, removed_by
from fxprune.reporting.record import attach, report
from fxprune.scoring import Scorer, score, scorer_of
from fxprune.scoring.loss import Loss
from fxprune.twin.certificate import verify as verify_against_twin

#: Stands for "whatever the method prefers".
AUTO: Literal["auto"] = "auto"


def compile(
    model: nn.Module | ExportedProgram,
    calib_data: Any,
    budget: float | Budget | None = None,
    *,
    method: str | Scorer = "variance",
    ratios: float | Mapping[str, float] | None = None,
    units: str | Sequence[str] = ("channel", "expert", "head", "head_dim", "kv_group"),
    ignore: str | Sequence[str] = (),
    round_to: int | Literal["auto"] = 1,
    min_keep: int | Literal["auto"] = AUTO,
    recover: str | None = AUTO,
    ridge: float = 1e-2,
    loss: Loss | None = None,
    forward_args: Callable[[Any], Any] | None = None,
    dynamic_shapes: Any = None,
    steps: int = 1,
    strict: bool = False,
    verify: bool = True,
    verify_dtype: torch.dtype | None = None,
    memory_limit: int = 2 << 30,
    cache_dir: str | PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> nn.Module:
    """Returns a smaller model that computes what the original computes without the removed channels.

    It is a `PrunedModule`, i.e. a `torch.fx.GraphModule`. Where the model cannot be captured whole (a detector), it is a
    copy of the model in which the largest parts that can be captured are each a `PrunedModule`; the budget is theirs.

    Args:
        model: any module that ``torch.export`` can capture, or an exported program; it is left bit-identical. On the
            meta device it is planned without weights, by a method that needs none, with ``recover=None`` and
            ``verify=False``.
        calib_data: batches, gone through several times: a DataLoader, a list, a tensor. A batch is a tensor,
            ``(inputs, targets)`` or a dict of keyword arguments.
        budget: the share of parameters to keep, in (0, 1], or a `Budget`, which may bound a measured latency; None with
            ``ratios``.
        method: the criterion: a `Scorer`, or a registered name: ``"variance"``, ``"vbp"``, ``"joint"``, ``"spvr"``,
            ``"ippro"``, ``"ippro-literal"``, ``"magnitude"``, ``"l1"``, ``"l2"``, ``"taylor"``, ``"fpgm"``, ``"bn_scale"``,
            ``"kl"``, ``"hrank"``, ``"chip"``, ``"nisp"``, ``"random"``.
        ratios: instead of a budget, the share of units to remove from every group; or shares by ``fnmatch`` pattern of
            the layers that make a group, where a group's own name comes first, then the first pattern that matches,
            then ``"default"`` (0 if absent).
        units: the kinds of unit that may go: ``"channel"``, ``"head"``, ``"kv_group"`` (a key and value head with all the
            query heads that share it; ``"head"`` is then one query head of every group), ``"head_dim"``,
            ``"expert"`` (of a mixture; it is gone from the router as well, which weighs and chooses among those that
            stay, as many as it chooses at least), and ``"block"`` for whole residual branches (``min_keep`` is about the others).
        ignore: ``fnmatch`` patterns of layers whose channels all stay.
        round_to: kept channels come in multiples of this; ``"auto"`` measures which multiple the hardware likes.
        min_keep: channels that every group keeps at least; with 0 whole residual branches may go; ``"auto"`` for the
            method's own choice, mostly 1.
        recover: ``"covariance"``, ``"sequential"``, ``"reconstruct"``, ``"mean_shift"`` (see `fxprune.recover`), None, or
            ``"auto"`` for the method's own choice; or ``"reinit"``: all weights are drawn anew by their modules' own rule,
            to be trained from scratch. Then, with ``min_keep=0``, layers on the only path may go as well, the next layer
            reading what they read.
        ridge: damping of ``"covariance"`` and ``"sequential"``, as a share of the mean variance of a layer's inputs; more
            of it helps where calibration data are few or tokens have outliers.
        loss: ``loss(outputs, targets)``, a mean over the batch, for methods that need gradients; cross-entropy by default.
        forward_args: makes ``(args, kwargs)`` of a batch that has another form.
        dynamic_shapes: as `torch.export.export` takes it; the batch is dynamic by default.
        steps: compile in so many steps, each scored and recovered anew on what the one before left; needs a budget.
        strict: raise at an op without a rule instead of freezing what it touches.
        verify: compare the result with its masked twin on the first batch.
        verify_dtype: the precision of that comparison; by default the model's own, and float64 where that leaves doubt.
        memory_limit: bytes that scoring and recovery may use for statistics and values that are alive.
        cache_dir: a folder where long scoring keeps what it has, so that an interrupted run goes on where it was, and where
            measured latencies of layers are kept.
        seed: for methods that draw.
        progress: show a progress bar on a terminal.

    Raises:
        CaptureError: the model cannot be captured; names module and line.
        CalibrationError: the data or the weights are unusable.
        BudgetError: the budget is malformed or out of reach; says the smallest that can be reached.
        NothingToPruneError: no channel may go.
        ScorerError: an unknown method or unusable scores.
        TypeError, ValueError: another argument is malformed.
        UnsupportedOpError: under ``strict``, an op without a rule.
        VerificationError: the result differs from its masked twin, a bug of fxprune; or it is not finite where the
            original is. A wrong model is never returned.
    """
    scorer = scorer_of(method)
    wanted = target_of(budget, ratios)
    least = scorer.defaults.get("min_keep", 1) if min_keep == AUTO else min_keep
    constraints = constraints_of(units, ignore, round_to, least)
    how = scorer.defaults.get("recover", "covariance") if recover == AUTO else recover
    check_recovery(how, ridge, memory_limit)
    check_types(model, forward_args, verify_dtype, seed)
    check_steps(steps, wanted, how)
    stages = Stages(progress)

    with stages("check"):
        module = runnable(model)
        batches = Batches(calib_data, device=device_of(module), forward_args=forward_args)
        first = batches.first()
        if not without_values(module, scorer.needs, how, verify):
            check_weights(module)
            probe(module, first)
        if wanted is not None and wanted.bounds_latency:
            wanted.setting(device_of(module))
    again = partial(
        compile, method=scorer, units=units, ignore=ignore, round_to=round_to, min_keep=least, recover=how, ridge=ridge,
        loss=loss, strict=strict, verify=verify, verify_dtype=verify_dtype, memory_limit=memory_limit,
        cache_dir=cache_dir, seed=seed, progress=progress,
    )  # fmt: skip
    with stages("capture"):
        captured, parts = capture_or_parts(model, batches, dynamic_shapes, strict)
    if captured is None:
        return _in_islands(module, parts, batches, partial(again, budget=budget, ratios=ratios, steps=steps), verify)
    inputs = CalibrationInputs(captured, batches)
    with stages("couple"):
        coupling = couple(captured, strict=strict)
        coupling = with_blocks(coupling) if "block" in constraints.kinds else coupling
    notes: tuple[str, ...] = ()
    if round_to == AUTO:
        with stages("widths"):
            constraints, notes = liked_widths(module, coupling, wanted, constraints)
    meeting = meeting_of(module, captured, wanted, constraints, cache_dir=cache_dir, progress=progress)
    if wanted is not None and steps > 1:
        once = partial(again, forward_args=forward_args, dynamic_shapes=dynamic_shapes)
        dense_ms = None if meeting is None else meeting.original_ms()
        return _in_steps(
            module, coupling, first, wanted, steps, verify, lambda current, part: once(current, calib_data, part), dense_ms,
            notes,
        )  # fmt: skip
    with stages("score"):
        scores = score(
            coupling, inputs, scorer, seed, loss=loss, memory_limit=memory_limit, progress=progress,
            cache_dir=cache_dir,
        )  # fmt: skip
    job = Job(
        coupling=coupling, inputs=inputs, first=first, constraints=constraints, recover=how, ridge=ridge,
        memory_limit=memory_limit, verify=verify, verify_dtype=verify_dtype, seed=operator.index(seed),
    )  # fmt: skip
    return finish(job, scorer, scores, wanted, stages, ratios=ratios, meeting=meeting, notes=notes)


def _in_islands(
    model: nn.Module, names: tuple[str, ...], batches: Batches, again: Callable[..., nn.Module], verify: bool
) -> nn.Module:
    """Compiles parts of a model together and puts them back into a copy of it."""
    model, first = unwrapped(model), batches.first()
    data = IslandData(model, names, batches)
    pruned = again(Islands(model, names), data)
    found = report(pruned)
    assert found.plan is not None
    plan = replace(found.plan, islands=names)
    calls = next(iter(data))[0][0]
    check = (first.args, first.kwargs) if verify else None
    result, certificate = put_back(model, names, pruned, plan, calls, check)
    if certificate is not None:
        insist(certificate)
    return attach(result, replace(found, plan=plan, dropped=0))


def _in_steps(
    model: nn.Module, coupling: Coupling, first: Batch, budget: Budget, steps: int, verify: bool,
    once: Callable[[nn.Module, Budget], nn.Module], dense_ms: float | None = None, notes: tuple[str, ...] = (),
) -> nn.Module:  # fmt: skip
    """Compiles in steps; plan, report and certificate are those of the whole way."""
    before = cost_model(coupling).of(np.zeros(len(coupling.channels), bool))
    pruned, plan = in_steps(once, unwrapped(model), budget, before, steps, dense_ms)
    last = report(pruned)
    removed = removed_by(coupling, plan)
    certificate = None
    # a collapsed branch leaves its constant in a tensor that the twin reads
    if verify and not plan.collapsed:
        tensors = at_full_size(coupling, removed, pruned)
        check = partial(verify_against_twin, coupling, removed, pruned, tensors=tensors)
        certificate = check((first.args, first.kwargs), dtype=torch.float64)
        insist(certificate)
    solution = Solution(removed, coupling.units_of(removed), before, Cost(**plan.after))
    bridged = Bridged(coupling.captured, coupling)
    found = make_report(coupling, bridged, solution, plan, certificate, last.skipped, last.seconds)
    latency = last.latency and replace(last.latency, dense_ms=dense_ms or last.latency.dense_ms)
    return attach(pruned, replace(found, latency=latency, notes=(*found.notes, *notes)))

"""What of one architecture is captured, coupled, and pruned to 0.7 and 0.4 of its parameters, verified against its twin."""

from __future__ import annotations

import gc
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

import fxprune
from fxprune._base.names import layer_of
from fxprune.budget.cost import cost_model
from fxprune.rewriting.slicing import keep_indices
from tests.support.weights import randomise

from .architectures import Architecture, Call
from .resized import at_other_sizes
from .timing import Stages
from .trained import trained

BUDGETS = (0.7, 0.4)


def examine(entry: Architecture, seed: int) -> dict[str, Any]:
    """Returns what came of one model; a stage that fails ends the line with its error."""
    found: dict[str, Any] = {}
    stage = Stages(found)
    try:
        with stage("build"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call = entry.build()
            randomise(call.model, seed, call.args, dict(call.kwargs))
        found["params"] = sum(p.numel() for p in call.model.parameters())
        try:
            with stage("capture"):
                captured = fxprune.capture(call.model, call.args, call.kwargs)
        except fxprune.CaptureError:
            for budget in BUDGETS:
                with stage(f"prune to {budget}"):
                    found[str(budget)] = in_islands(call, budget, found)
            del found["at"]
            return found
        with stage("couple"):
            coupling = fxprune.couple(captured)
        found |= described(coupling)
        with stage("score"):
            scores = fxprune.score(coupling, [captured.call.flatten(call.args, call.kwargs)], "l2")
        for budget in BUDGETS:
            with stage(f"prune to {budget}"):
                found[str(budget)] = pruned_to(coupling, scores, call, budget)
        del found["at"]
    except Exception as error:  # any failure is a result
        text = str(error).partition("\n")[0]  # the rest names places on this machine
        found["error"] = f"{type(error).__name__}: {text}"[:600]
        found["trace"] = traceback.format_exc()[-1500:]
    return found


def in_islands(call: Call, share: float, found: dict[str, Any]) -> dict[str, Any]:
    """Returns what came of one budget for a model that can only be captured in parts; adds what the parts are."""
    try:
        pruned = fxprune.compile(
            call.model,
            [(call.args, dict(call.kwargs))],
            share,
            method="l2",
            recover=None,
            forward_args=lambda batch: batch,
            verify_dtype=torch.float64,
            progress=False,
        )
    except (fxprune.BudgetError, fxprune.NothingToPruneError) as error:
        return refused(error)
    report = fxprune.report(pruned)
    kinds: Counter[str] = Counter()
    for group in report.groups:
        kinds[group.kind] += group.before
    reasons: Counter[str] = Counter()
    for held in report.frozen:
        reasons[held.reason] += held.coordinates
    found |= {"units": dict(kinds), "islands": list(report.islands), "frozen": dict(reasons.most_common(8))}
    status = {True: "verified", False: "WRONG", None: "no proof"}[report.verified]
    kept = round(report.params[1] / report.params[0], 4)
    keep = report.plan.keep if report.plan else {}
    sizes = at_other_sizes(call, keep, pruned)
    step = told(trained(call, keep, pruned), report.notes)
    return {"status": status, "kept": kept, "error": report.max_error, "sizes": sizes, "step": step}


def described(coupling: fxprune.Coupling) -> dict[str, Any]:
    """Returns the units by kind, what can go at all, and what cannot, by reason, in parameters."""
    model = cost_model(coupling)
    every = coupling.removed_mask(range(len(coupling.units)))
    least, whole = model.of(every), model.of(every & False)
    kinds: Counter[str] = Counter()
    for group in coupling.groups:
        kinds[group.kind] += len(group.units)
    reasons: Counter[str] = Counter()
    for held in coupling.frozen():
        reasons[held.reason] += held.coordinates
    return {
        "units": dict(kinds),
        "groups": len(coupling.groups),
        "removable": round(1 - least.params / max(whole.params, 1), 4),
        "frozen": dict(reasons.most_common(8)),
        "unsupported": sorted({op for op, _ in coupling.unsupported}),
    }


def pruned_to(coupling: fxprune.Coupling, scores: Any, call: Call, share: float) -> dict[str, Any]:
    """Returns what came of one budget."""
    try:
        solution = fxprune.solve(coupling, scores, fxprune.Budget(params=share))
    except (fxprune.BudgetError, fxprune.NothingToPruneError) as error:
        return refused(error)
    pruned = fxprune.emit(coupling.captured, fxprune.rewrite(coupling, solution.removed))
    certificate = fxprune.verify(
        coupling, solution.removed, pruned, (call.args, dict(call.kwargs)), dtype=torch.float64
    )
    status = {True: "verified", False: "WRONG", None: "no proof"}[certificate.verified]
    kept = solution.after.params / solution.before.params
    keep = keep_indices(fxprune.Selection(coupling, solution.removed))
    axes = {name: {dim: tuple(index.tolist()) for dim, index in of.items()} for name, of in keep.items()}
    gc.collect()  # graphs are cycles, and hold whole models
    sizes = at_other_sizes(call, axes, pruned)
    computed = {layer_of(name) for name in coupling.captured.folded}
    gc.collect()
    step = told(trained(call, axes, pruned, computed), coupling.captured.warned)
    gc.collect()
    return {
        "status": status,
        "kept": round(kept, 4),
        "error": certificate.max_error,
        "note": certificate.note,
        "sizes": sizes,
        "step": step,
    }


def told(step: str, warned: Sequence[object]) -> str:
    """Returns what came of a training step; a difference that a warning announces is not wrong."""
    return step.replace("WRONG", "announced:") if warned else step


def refused(error: fxprune.FxpruneError) -> dict[str, Any]:
    """Returns what came of a budget that is out of reach."""
    return {"status": type(error).__name__, "note": str(error)[:400]}

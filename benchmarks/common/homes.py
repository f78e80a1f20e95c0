"""What comes home of one architecture: its own class at a budget, equal to the graph, trained for a step as the original."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

from torch import nn

import fxprune
from fxprune._base.names import fetch
from fxprune.budget.constraints import free_groups
from fxprune.capturing.captured import Captured, example_call
from fxprune.compiler.homecoming import further_calls, ties_in
from fxprune.compiler.islands import Islands, find_islands
from fxprune.coupling.blocks import with_blocks
from fxprune.data.calls import calls_of
from fxprune.homing.counting import Dimensions
from fxprune.homing.layers import told
from fxprune.homing.lists import moved
from fxprune.homing.proof import difference
from fxprune.homing.restoring import restored, way_home
from fxprune.homing.whole import gone
from fxprune.rewriting.emission import emitted
from fxprune.rewriting.slicing import keep_indices
from tests.support.weights import randomise

from .architectures import Architecture, Call
from .timing import Stages
from .trained import trained

BUDGET = 0.7


def examine(entry: Architecture, seed: int, units: tuple[str, ...]) -> dict[str, Any]:
    """Returns how one model comes home, or at which stage it did not and why."""
    found: dict[str, Any] = {}
    stage = Stages(found)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _examine(entry, seed, units, found, stage)
        del found["at"]
    except Exception as error:  # any failure is a result
        text = str(error).partition("\n")[0]  # the rest names places on this machine
        found["error"] = f"{type(error).__name__}: {text}"[:600]
    return found


def _examine(entry: Architecture, seed: int, units: tuple[str, ...], found: dict[str, Any], stage: Any) -> None:
    with stage("build"):
        call = entry.build()
        randomise(call.model, seed, call.args, dict(call.kwargs))
    found["params"] = sum(p.numel() for p in call.model.parameters())
    with stage("capture"):
        call, captured = _captured(call)
    with stage("couple"):
        coupling = fxprune.couple(captured)
        coupling = with_blocks(coupling) if "block" in units else coupling
    with stage("read"):
        way = way_home(coupling)
    constraints = fxprune.Constraints(kinds=units)
    with stage("tie"):
        ties = ties_in(coupling, way, constraints)
    units_free = sum(len(group.units) for group in free_groups(coupling, constraints))
    found |= {
        "units": units_free,
        "held": int(ties.held.sum()),
        "tied": len({int(c) for ids, _ in ties.equal for c in ids}),
    }
    with stage("score"):
        data = [captured.call.flatten(call.args, call.kwargs)]
        scores = fxprune.score(coupling, data, "random")
    with stage("solve"):
        solution = fxprune.solve(coupling, scores, BUDGET, constraints=replace(constraints, ties=ties))
    found["kept"] = round(solution.after.params / solution.before.params, 4)
    with stage("emit"):
        pruned = emitted(solution.selection)
    with stage("home"):
        calls = [example_call(captured), *further_calls(captured, "cpu")]
        home = restored(solution.selection, pruned, way, calls)
    found["calls"] = len(calls)
    out = [layer.path for layer in gone(way.layers, solution.removed)]
    found["how"] = (
        f"{len(out)} layers taken out"
        if out
        else _edits(call.model, home, pruned, calls[0], bool(found["held"] or found["tied"]))
    )
    keep = {**keep_indices(solution.selection), **Dimensions(coupling).of_buffers(solution.selection.slicer)}
    if way.joined is not None:  # what training alone reads
        keep = way.joined.kept(solution.selection) | keep
    axes = {
        n: {dim: tuple(index.tolist()) for dim, index in of.items()} for n, of in keep.items() if _has(call.model, n)
    }
    with stage("train"):
        found["step"] = trained(call, axes, copy.deepcopy(home), moved=moved(call.model, out))


def _captured(call: Call) -> tuple[Call, Captured]:
    """Returns what is captured of a call; of a model that cannot be captured whole its parts, and the call of these."""
    try:
        return call, fxprune.capture(call.model, call.args, call.kwargs)
    except fxprune.CaptureError as error:
        names = find_islands(call.model, (call.args, dict(call.kwargs)))
        if not names:
            raise error from None
        calls = calls_of(call.model, names, (call.args, dict(call.kwargs)))
        parts = Call(Islands(call.model, names), ([calls[name] for name in names],))
        return parts, fxprune.capture(parts.model, parts.args)


def _has(model: nn.Module, name: str) -> bool:
    """Returns whether a name is one of the model's own, not that of a constant that the graph lifted."""
    try:
        fetch(model, name)
    except AttributeError:
        return False
    return True


def _edits(model: nn.Module, home: nn.Module, pruned: nn.Module, own: Any, ties: bool) -> str:
    """Returns the least with which the class computes what the graph does."""
    bare = copy.deepcopy(model)
    for path, module in bare.named_modules():
        left = home.get_submodule(path)
        module._parameters.update(left._parameters)
        module._buffers.update(left._buffers)
    tied = " and ties" if ties else ""
    if _alike(bare, pruned, own):
        return f"no edit{tied}"
    told(bare)
    return f"leaf updates{tied}" if _alike(bare, pruned, own) else f"attribute edits{tied}"


def _alike(model: nn.Module, pruned: nn.Module, own: Any) -> bool:
    return difference(model, pruned, own) is None

"""A model in parts: what can be captured of it is compiled together, and takes its places in a copy of the model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn

from fxprune._base.errors import RestoreError, ScorerError, TrainingWarning, outside
from fxprune.capturing.source import unwrapped
from fxprune.compiler.islands import IslandData, Islands
from fxprune.compiler.reassembly import put_back
from fxprune.compiler.state import State
from fxprune.data.batch import Batch
from fxprune.data.batches import Batches
from fxprune.data.calls import Call
from fxprune.data.checks import device_of
from fxprune.homing.restoring import untrained
from fxprune.results.attached import attach, report
from fxprune.results.certificate import Certificate
from fxprune.results.record import Report
from fxprune.results.tables import few
from fxprune.scoring.scorer import Scorer, judges_outputs, registered


def in_parts(state: State, compiled: Callable[[State], State]) -> State:
    """Returns the state of a copy of the model in which the parts are pruned.

    Args:
        state: with the names of the parts that can be captured.
        compiled: compiles them as one module.

    Raises:
        ScorerError: the method judges by outputs that parts do not have.
        RestoreError: the class cannot hold what is left; the error has the model of graphs as ``pruned``.
        VerificationError: the whole does not compute what it does with masked twins for its parts.
    """
    _check_without_outputs(state.scorer, state.parts)
    model = unwrapped(state.module)
    islands = Islands(model, state.parts)
    data = IslandData(model, state.parts, state.batches)
    batches = Batches(data, device=device_of(islands))
    options = replace(state.options, dynamic_shapes=None)
    parts = replace(state, source=islands, module=islands, batches=batches, first=batches.first(), options=options)
    try:
        found = compiled(parts)
    except RestoreError as error:
        one = error.pruned is not None and options.steps == 1  # the graph of a step is none of the original's
        error.pruned = _whole(model, state, report(error.pruned), error.pruned, parts.first)[0] if one else None
        raise
    home = found.pruned if isinstance(found.pruned, Islands) else None
    graph = found.pruned if home is None else found.graph
    pruned, check = _whole(model, state, found.report, graph, found.first, home)
    if state.options.verify:
        check((state.first.args, state.first.kwargs))
    told = untrained(model, pruned, (state.first.args, state.first.kwargs), same_shapes=False)
    if told is None:
        return replace(found, report=report(pruned), pruned=pruned)
    text = f"{told}, and the model does not: it may read there what is inside a part ({few(state.parts, 3)})"
    if home is not None:
        refused = RestoreError(f"the original's class cannot hold what is left: {text}; name what it reads in ignore=")
        refused.pruned = _whole(model, state, replace(found.report, form="graph"), graph, found.first)[0]
        raise refused
    warnings.warn(TrainingWarning(text), stacklevel=outside())
    said = replace(report(pruned), notes=(*report(pruned).notes, text))
    return replace(found, report=said, pruned=attach(pruned, said))


def _check_without_outputs(scorer: Scorer, parts: Sequence[str]) -> None:
    """Makes sure that a criterion can judge parts side by side, of which none gives the model's outputs.

    Raises:
        ScorerError: it judges by those; names the criteria that do not.
    """
    if judges_outputs(scorer):
        others = [name for name, make in sorted(registered().items()) if not judges_outputs(make())]
        raise ScorerError(
            f"method {scorer.name!r} judges by the model's outputs or a loss of them (it needs {' and '.join(scorer.needs)}), and this "
            f"model is captured in parts ({few(parts, 3)}), which have outputs of their own alone: expected a method that judges by "
            f"weights or activations ({', '.join(others)}), or a part compiled by itself"
        )


def _whole(
    model: nn.Module, state: State, said: Report, graph: nn.Module, first: Batch, home: Islands | None = None
) -> tuple[nn.Module, Callable[[Call], Certificate]]:
    """Returns what `put_back` does, the report of the parts attached to the copy."""
    assert said.plan is not None
    plan = replace(said.plan, islands=state.parts)
    pruned, check = put_back(model, plan, graph, first.args[0], home)
    return attach(pruned, replace(said, plan=plan, dropped=0)), check

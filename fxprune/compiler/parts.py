"""A model in parts: what can be captured of it is compiled together, and takes its places in a copy of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fxprune.capturing.source import unwrapped
from fxprune.compiler.islands import IslandData, Islands
from fxprune.compiler.reassembly import put_back
from fxprune.compiler.state import State
from fxprune.data.batches import Batches
from fxprune.data.checks import device_of
from fxprune.results.attached import attach


def in_parts(state: State, compiled: Callable[[State], State]) -> State:
    """Returns the state of a copy of the model in which the parts are pruned.

    Args:
        state: with the names of the parts that can be captured.
        compiled: compiles them as one module.
    """
    model = unwrapped(state.module)
    islands = Islands(model, state.parts)
    data = IslandData(model, state.parts, state.batches)
    batches = Batches(data, device=device_of(islands))
    options = replace(state.options, dynamic_shapes=None)
    found = compiled(
        replace(state, source=islands, module=islands, batches=batches, first=batches.first(), options=options)
    )
    assert found.report.plan is not None
    plan = replace(found.report.plan, islands=state.parts)
    pruned, check = put_back(model, plan, found.pruned, found.first.args[0])
    if state.options.verify:
        check((state.first.args, state.first.kwargs))
    report = replace(found.report, plan=plan, dropped=0)
    return replace(found, report=report, pruned=attach(pruned, report))

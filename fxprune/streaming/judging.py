"""How close a result over files is to the dense model: all judged batches march through each of the two once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fxprune.compiler.judging import Judged, is_causal
from fxprune.compiler.state import State
from fxprune.coupling.selection import Selection
from fxprune.data.holdout import Part
from fxprune.reporting.fidelity import Pair, measured
from fxprune.results.fidelity import Fidelity
from fxprune.twin.interpreter import Run
from fxprune.twin.march import ways
from fxprune.twin.waiting import waiting


def marched(found: State) -> Fidelity:
    """Returns how close the masked twin, which the result equals, comes to the dense model.

    The dense outputs wait for the twin's, in files where they are more than a quarter of ``memory_limit``.
    """
    return measured(_pairs(found), causal=is_causal(found))


def _pairs(found: State) -> Iterator[Pair]:
    assert found.captured is not None
    limit, call = found.options.memory_limit // 4, found.captured.call
    with waiting(limit) as held:
        for number, outputs in _outputs(found, Selection.nothing(found.coupling), limit):
            held.put(number, outputs)
        for batch, (number, outputs) in zip(Judged(found), _outputs(found, found.selection, limit), strict=True):
            yield batch, call.unflatten(held.take(number)), call.unflatten(outputs)


def _outputs(found: State, selection: Selection, limit: int) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yields each judged batch's number among these, and what the graph makes of it."""
    for number, steps in ways(Run(selection), Part(found.inputs, *found.split.judged), limit):
        for node, values in steps:
            if node.op == "output":
                outputs = values[node]
        yield number, outputs

"""How close a result over files is to the dense model: all judged batches march through each of the two once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fxprune.capturing.inputs import Flat
from fxprune.compiler.judging import is_causal
from fxprune.compiler.state import State
from fxprune.coupling.selection import Selection
from fxprune.data.batch import Batch
from fxprune.reporting.fidelity import Pair, measured
from fxprune.results.fidelity import Fidelity
from fxprune.twin.interpreter import Run
from fxprune.twin.march import ways
from fxprune.twin.waiting import waiting


def marched(found: State, data: Iterable[Batch]) -> Fidelity:
    """Returns how close the masked twin, which the result equals, comes to the dense model.

    The dense outputs wait for the twin's, in files where they are more than a quarter of ``memory_limit``.
    """
    return measured(_pairs(found, data), causal=is_causal(found))


def _pairs(found: State, data: Iterable[Batch]) -> Iterator[Pair]:
    assert found.captured is not None
    limit, call = found.options.memory_limit // 4, found.captured.call
    batches = list(data)  # both models are to see the same, though the data come in another order
    inputs = [call.flatten(batch.args, batch.kwargs) for batch in batches]
    with waiting(limit) as held:
        for number, outputs in _outputs(Selection.nothing(found.coupling), inputs, limit):
            held.put(number, outputs)
        for number, outputs in _outputs(found.selection, inputs, limit):
            yield batches[number], call.unflatten(held.take(number)), call.unflatten(outputs)


def _outputs(selection: Selection, inputs: Sequence[Flat], limit: int) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yields each batch's number, and what the graph makes of it."""
    for number, steps in ways(
        Run(selection), inputs, limit
    ):  # a batch may come in parts, the last of which ends in outputs
        for node, values in steps:
            if node.op == "output":
                yield number, values[node]

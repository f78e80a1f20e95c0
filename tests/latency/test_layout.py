"""What a model computes, and its shapes after any removal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from fxprune.coupling.selection import Selection
from fxprune.latency.layout import example_call, layout_of
from fxprune.rewriting.slicing import slice_graph
from tests.models import small
from tests.support.latency import SETTING
from tests.support.marks import but_slow
from tests.support.pruning import coupling_of, linear_coupling, removal


@pytest.mark.parametrize("share", but_slow([0.0, 0.4, 0.8], quick=(0.4,)))
@pytest.mark.parametrize("name", small.NETWORKS)
def test_the_layout_tells_the_shapes_of_the_sliced_model(name: str, share: float) -> None:
    coupling = coupling_of(name)
    removed = removal(coupling, 0, share)
    layout = layout_of(coupling, 5)
    counts = layout.counts(removed)
    shapes = _shapes(slice_graph(Selection(coupling, removed)), coupling.captured, 5)
    live = layout.live(removed)
    assert {step.node for step in live if step.operation.contracts} == {c.node for c in coupling.contractions if c.macs}
    for step in live:
        widths = [counts[n] for n in step.factors]
        (told,) = [[size.at(widths) for size in result.sizes] for result in step.operation.results]
        assert told == list(shapes[step.node.name]), step
        result = step.operation.runner(widths, SETTING)()  # and it runs alone
        assert list(result.shape) == told


def _shapes(graph: fx.GraphModule, captured: Any, batch: int) -> dict[str, Any]:
    found: dict[str, Any] = {}

    class Shapes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            found[n.name] = getattr(result := super().run_node(n), "shape", None)
            return result

    args, kwargs = example_call(captured, batch, "cpu")
    with torch.no_grad():
        Shapes(graph).run(*captured.call.flatten(args, kwargs))
    return found


def test_layers_of_one_shape_are_one_operation() -> None:
    layout = layout_of(linear_coupling(8, 16, 16, 16, 4), 1)
    linear = [step.operation for step in layout.steps if step.operation.contracts]
    assert len(linear) == 4 and len(set(linear)) == 3
    assert len({op.key for op in linear}) == 3

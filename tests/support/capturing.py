"""What the capture tests share: operators of a graph, raw exports to compare with, and the exactness check."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.capturing.captured import Captured, capture
from fxprune.capturing.flatten import flatten
from fxprune.capturing.normalize import normalise
from fxprune.capturing.source import open_source
from fxprune.capturing.state import read_state
from fxprune.capturing.symbols import read_sizes

AUTO = torch.export.Dim.AUTO


class Fn(nn.Module):
    """A module around a function of ``(module, *inputs)``; submodules are given by name."""

    def __init__(self, function: Any, **modules: Any) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


def raw(model: nn.Module, *args: Any) -> fx.Graph:
    """What torch.export itself gives, with a dynamic batch: the traps are in there."""
    shapes = [{0: AUTO} if isinstance(a, Tensor) else None for a in args]
    dynamic = (tuple(shapes),) if isinstance(model, Fn) else tuple(shapes)
    return torch.export.export(model.eval(), args, dynamic_shapes=dynamic, strict=False).graph


def ops(graph: Any) -> Counter[str]:
    """How often each operator occurs, by short name: ``add.Tensor``."""
    nodes = graph.module.graph.nodes if isinstance(graph, Captured) else graph.nodes
    return Counter(str(n.target).removeprefix("aten.") for n in nodes if n.op == "call_function")


def nodes(captured: Captured, op: str) -> list[fx.Node]:
    return [n for n in captured.module.graph.nodes if str(n.target).removeprefix("aten.") == op]


def attributes(captured: Captured) -> list[str]:
    return [str(n.target) for n in captured.module.graph.nodes if n.op == "get_attr"]


def run(captured: Captured, *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        return captured.call.unflatten(captured.module(*captured.call.flatten(args, kwargs)))


def copied(tree: Any) -> Any:
    return pytree.tree_map_only(Tensor, torch.clone, tree)


def assert_equal(expected: Any, got: Any, tolerance: float = 1e-12) -> None:
    left, left_spec = pytree.tree_flatten(expected)
    right, right_spec = pytree.tree_flatten(got)
    assert left_spec == right_spec
    for a, b in zip(left, right, strict=True):
        if isinstance(a, Tensor):
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            assert float((a - b).abs().max()) <= tolerance * float(a.abs().max()), "values differ"
        else:
            assert a == b


def check(model: nn.Module, *args: Any, others: tuple[tuple[Any, ...], ...] = ()) -> Captured:
    """Capture the model in float64 and compare it with itself on the example and on other inputs."""
    model = model.double().eval()
    captured = capture(model, args)
    for inputs in (args, *others):
        with torch.no_grad():
            expected = model(*copied(inputs))
        assert_equal(expected, run(captured, *copied(inputs)))
    return captured


def unnormalised(model: nn.Module, *args: Any) -> tuple[fx.GraphModule, Any]:
    """The flat graph before normalisation, with the sizes that the passes take."""
    source = open_source(model, args, {}, None, ())
    flat = flatten(source.program, read_state(source.model))
    return flat, read_sizes(source.program, flat, source.batched)


__all__ = [
    "AUTO",
    "Fn",
    "assert_equal",
    "attributes",
    "check",
    "copied",
    "nodes",
    "normalise",
    "ops",
    "raw",
    "run",
    "unnormalised",
]

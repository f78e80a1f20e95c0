"""What the capture tests share: operators of a graph, raw exports to compare with, and the exactness check."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.capturing.captured import Captured, capture
from tests.models.fn import Fn

AUTO = torch.export.Dim.AUTO


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
            assert float((a - b).detach().abs().max()) <= tolerance * float(a.detach().abs().max()), "values differ"
        else:
            assert a == b


def check(
    model: nn.Module, *args: Any, others: tuple[tuple[Any, ...], ...] = (), batch_alone: bool = False
) -> Captured:
    """Capture the model in float64 and compare it with itself on the example and on other inputs."""
    model = model.double().eval()
    free = {"args": tuple({0: AUTO} for _ in args)} if batch_alone else None
    captured = capture(model, args, dynamic_shapes=free)
    for inputs in (args, *others):
        with torch.no_grad():
            expected = model(*copied(inputs))
        assert_equal(expected, run(captured, *copied(inputs)))
    return captured


def snapshot(model: nn.Module) -> dict[str, Any]:
    return {
        "flags": [module.training for module in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "names": [set(vars(module)) for module in model.modules()],
        "tensors": {name: (id(t), t._version, t.clone()) for name, t in tensors(model).items()},
    }


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def assert_untouched(model: nn.Module, before: dict[str, Any]) -> None:
    after = snapshot(model)
    for key in ("flags", "hooks", "names"):
        assert after[key] == before[key]
    assert after["tensors"].keys() == before["tensors"].keys()
    for name, (identity, version, value) in before["tensors"].items():
        assert after["tensors"][name][:2] == (identity, version)
        assert torch.equal(after["tensors"][name][2], value)

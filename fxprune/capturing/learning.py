"""How a computed weight learns: as the plain tensor that is to take its place would, or in a way of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.capturing.flatten import Flat
from fxprune.capturing.normalize.edit import aten, is_op, writes
from fxprune.capturing.regions import GRAD


def evaluated(flat: Flat, nodes: Iterable[fx.Node]) -> dict[fx.Node, Tensor] | None:
    """Return what nodes give that depend on the model's tensors alone, ``[...]``, each with the gradient that it has there.

    None where that is not the same each time: one draws random numbers, writes, or has no values.
    """
    values: dict[fx.Node, Any] = {}
    for node in nodes:
        if writes(node) or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            return None
        with torch.inference_mode(False), torch.set_grad_enabled(node.meta.get(GRAD, True)):
            values[node] = _held(flat.tensors[str(node.target)]) if node.op == "get_attr" else _called(node, values)
        if node.op == "get_attr" and values[node].is_meta:
            return None
    return values


def _held(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _called(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def cuts(node: fx.Node, values: Mapping[fx.Node, Tensor]) -> bool:
    """Say whether gradients stop at a node that would have some; ``values`` are of any shape, ``[...]``."""
    stops = not node.meta.get(GRAD, True) or is_op(node, aten.detach)
    return stops and any(values[source].requires_grad for source in node.all_input_nodes)


def trains_alike(value: Tensor, parameters: Sequence[Tensor], *, cut: bool) -> bool:
    """Say whether a plain tensor in the place of a computed weight trains as that does.

    It does where one parameter has the very gradient of the weight, and no other has any. It also takes the place of
    parameters that follow its gradient by the chain rule, each of its shape among them.

    Args:
        value: The weight, ``[...]``, with its gradient.
        parameters: What it was computed from, ``[...]`` each.
        cut: Whether gradients stop on the way.
    """
    wanted = torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value)
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    found = torch.autograd.grad(value, learning, wanted, retain_graph=True, allow_unused=True)
    moved = [gradient for gradient in found if gradient is not None and gradient.any()]
    if len(moved) == 1 and moved[0].shape == value.shape and torch.allclose(moved[0], wanted):
        return True
    of_its_shape = sum(parameter.shape == value.shape for parameter in parameters)
    return not cut and bool(moved) and of_its_shape == sum(gradient.shape == value.shape for gradient in moved)

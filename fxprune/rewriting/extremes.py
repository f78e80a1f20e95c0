"""Literals that are the least or the largest number of a dtype follow the dtype that the graph runs in.

A model writes ``scores.masked_fill(mask, torch.finfo(scores.dtype).min)``; the captured graph has a number, which half precision
cannot hold: it is too large, or becomes an infinity, of which softmax makes NaN.

Before: ``masked_fill(scores, mask, -3.4e38)``. After: ``masked_fill(scores, mask, extreme(scores, -3.4e38))``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.capturing.captured import TensorInfo
from fxprune.capturing.extremes import CAST, FLOATING, extreme, is_extreme
from fxprune.capturing.normalize.dtypes import ANCHOR


class Extremes:
    """Finds the extremes among the arguments of a sliced graph's nodes, and what they are extremes of.

    Args:
        info: of the captured graph's nodes, by their names.
        tensors: what the sliced graph reads, by name.
    """

    def __init__(self, info: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        self._info, self._tensors = info, tensors

    def followed(self, node: fx.Node, copied: Callable[[fx.Node], fx.Node], graph: fx.Graph) -> tuple[Any, Any]:
        """Returns the arguments of a node's copy, each extreme as a call before it.

        Args:
            node: of the sliced graph.
            copied: gives the copy of a node.
            graph: what is being written.
        """

        def written(value: Any) -> Any:
            number = self._number(value)
            of = None if number is None else self._reference(node, number)
            if number is None or of is None:
                return copied(value) if isinstance(value, fx.Node) else value
            reference = graph.get_attr(ANCHOR) if of == ANCHOR else copied(of)
            found = graph.call_function(extreme, (reference, number))
            if of == ANCHOR:  # the literal stays in the captured dtype until it is cast, and must be within both
                found = graph.call_function(max if number < 0 else min, (found, number))
            if not isinstance(value, fx.Node):
                return found
            return graph.call_function(torch.ops.aten.new_full.default, (reference, [], found))

        if node.op != "call_function" or not any(map(self._number, (*node.args, *node.kwargs.values()))):
            return fx.map_arg(node.args, copied), fx.map_arg(node.kwargs, copied)
        args = tuple(fx.map_arg(a, copied) if isinstance(a, (list, tuple)) else written(a) for a in node.args)
        return args, {name: written(value) for name, value in node.kwargs.items()}

    def _number(self, value: Any) -> float | None:
        """Returns what may be an extreme: a literal, or the number that a tensor without dimensions is made of."""
        if not isinstance(value, fx.Node):
            return value if any(is_extreme(value, dtype) for dtype in FLOATING) else None
        info = self._info.get(value.name)
        if not isinstance(info, TensorInfo) or info.shape or not info.dtype.is_floating_point:
            return None
        found: list[Any]
        if value.op == "get_attr":
            tensor = self._tensors[str(value.target)]
            found = [tensor.item()] if isinstance(tensor, Tensor) and not tensor.is_meta else []
        else:
            made = not any(isinstance(self._info.get(n.name), TensorInfo) for n in value.all_input_nodes)
            found = [*value.args] if made else []
        return next((number for number in found if is_extreme(number, info.dtype)), None)

    def _reference(self, node: fx.Node, number: float) -> Any:
        """Returns the operand whose dtype a number is an extreme of, or the name of the tensor that has the model's dtype."""
        if node.meta.get(CAST):
            anchor = self._tensors.get(ANCHOR)
            return ANCHOR if anchor is not None and is_extreme(number, anchor.dtype) else None
        for operand in node.all_input_nodes:
            info = self._info.get(operand.name)
            if isinstance(info, TensorInfo) and is_extreme(number, info.dtype) and self._number(operand) is None:
                return operand
        return None

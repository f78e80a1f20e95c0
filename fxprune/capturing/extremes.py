"""The least and the largest number of a dtype, as models take them for masks: ``torch.finfo(scores.dtype).min``."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

#: Key of a node's ``meta``: it is made of literals, and what comes of it is cast to the model's dtype.
CAST = "cast"

#: The dtypes that models compute in.
FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def extreme(value: Any, captured: float) -> Any:
    """Return the least number that the dtype of ``value``, ``[...]``, has, or the largest if ``captured`` is positive."""
    if isinstance(value, fx.Proxy):
        return value.tracer.create_proxy("call_function", extreme, (value, captured), {})
    largest = torch.finfo(value.dtype).max
    return largest if captured > 0 else -largest


def is_extreme(number: object, dtype: torch.dtype) -> bool:
    """Say whether a number is the least or the largest of a floating dtype."""
    return type(number) is float and dtype.is_floating_point and abs(number) == torch.finfo(dtype).max


def as_captured(graph: fx.Graph) -> None:
    """Have a written graph take the extremes of the dtype that it was captured in, whatever it runs in."""
    for node in graph.find_nodes(op="call_function", target=extreme):
        number: Any = node.args[1]
        node.replace_all_uses_with(number)
        graph.erase_node(node)

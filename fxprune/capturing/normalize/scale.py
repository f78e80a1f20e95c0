"""Attention keeps its scale when heads get narrower."""

from __future__ import annotations

import math

from torch import fx

from fxprune.capturing.normalize.edit import aten, fake, is_op, schema_args
from fxprune.capturing.sizes import static


def pin_attention_scale(graph: fx.Graph) -> None:
    """Write the default scale of attention, one over the square root of the head dimension, as a number."""
    for node in graph.nodes:
        if not is_op(node, aten.scaled_dot_product_attention.default):
            continue
        query = fake(node.args[0])
        width = None if query is None else static(query.shape[-1])
        if schema_args(node)["scale"] is None and width:
            node.kwargs = {**node.kwargs, "scale": 1 / math.sqrt(width)}

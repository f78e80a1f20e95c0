"""Read off an exported program which sizes are symbolic, and give each symbol its number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from fxprune.capturing.flatten import Flat
from fxprune.capturing.sizes import Sizes, assign, static


def read_sizes(program: ExportedProgram, flat: Flat, batched: Sequence[bool]) -> Sizes:
    """Give every symbol of the inputs' shapes a prime; those of batch dimensions share one.

    Args:
        program: The exported program, for the bounds of the symbols.
        flat: Its flat graph.
        batched: For each placeholder, whether its dimension 0 is the batch.
    """
    batch: list[Any] = []
    others: list[Any] = []
    values = [node.meta["val"] for node in placeholders(flat.graph)]
    for value, flag in zip(values, batched, strict=True):
        for dim, size in enumerate(value.shape):
            if static(size) is None:
                found = sorted(size.node.expr.free_symbols, key=str)
                (batch if dim == 0 and flag else others).extend(found)
    bounds = {symbol: int(r.upper) for symbol, r in program.range_constraints.items() if r.upper.is_Integer}
    batch = list(dict.fromkeys(batch))
    others = [symbol for symbol in dict.fromkeys(others) if symbol not in batch]
    return assign(batch, others, bounds, _static_sizes(flat))


def placeholders(graph: fx.Graph) -> list[fx.Node]:
    """Return the graph's placeholders in order."""
    return [node for node in graph.nodes if node.op == "placeholder"]


def _static_sizes(flat: Flat) -> set[int]:
    tensors: list[Tensor] = [*flat.tensors.values()]
    tensors += [n.meta["val"] for n in flat.graph.nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    return {size for tensor in tensors for size in map(static, tensor.shape) if size is not None}

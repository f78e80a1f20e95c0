"""Where the dimensions of a layout operator's output come from."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxprune.capturing.normalize.edit import aten, fake, is_op, named, schema_args
from fxprune.capturing.sizes import static

_MOVES = named("permute transpose.int swapaxes swapdims t movedim moveaxis unsqueeze contiguous clone")


def axes_of(node: fx.Node) -> list[int | None] | None:
    """Return for each output dimension the input dimension that it is, or None for a new one of size 1.

    ``permute(x, [2, 0, 1])`` gives ``[2, 0, 1]``; ``unsqueeze(x, 0)`` of a matrix gives ``[None, 0, 1]``. The
    result is None for an operator that does more than move dimensions.
    """
    before = fake(node.args[0]) if node.args else None
    if before is None:
        return None
    if is_op(node, aten.squeeze):
        gone = dims_of(schema_args(node).get("dim"), before.ndim)
        return [axis for axis, size in enumerate(before.shape) if axis not in gone or static(size) != 1]
    if is_op(node, aten.numpy_T):
        return [*reversed(range(before.ndim))]
    return moved(node, before.ndim) if is_op(node, *_MOVES) else None


def dims_of(dim: Any, ndim: int) -> list[int]:
    """Return the dimensions that an argument names, counted from the front; None and an empty list name all."""
    dims = range(ndim) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    return [d % ndim for d in dims]


def moved(node: fx.Node, ndim: int) -> list[int | None]:
    """Return what `axes_of` does, of an operator that moves dimensions: it is asked, with a size for each."""
    target: Any = node.target
    marked = torch.empty([*range(2, ndim + 2)], device="meta")
    return [None if size == 1 else size - 2 for size in target(marked, *node.args[1:], **node.kwargs).shape]

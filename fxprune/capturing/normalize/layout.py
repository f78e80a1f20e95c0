"""Where the dimensions of a layout operator's output come from."""

from __future__ import annotations

from typing import Any

from torch import fx

from fxprune.capturing.normalize.edit import aten, fake, is_op, schema_args
from fxprune.capturing.sizes import static

_SWAPS = (aten.transpose.int, aten.swapaxes, aten.swapdims)
_MOVES = (aten.movedim, aten.moveaxis)
_SAME = (aten.contiguous, aten.clone)


def axes_of(node: fx.Node) -> list[int | None] | None:
    """Return for each output dimension the input dimension that it is, or None for a new one of size 1.

    ``permute(x, [2, 0, 1])`` gives ``[2, 0, 1]``; ``unsqueeze(x, 0)`` of a matrix gives ``[None, 0, 1]``. The
    result is None for an operator that does more than move dimensions.
    """
    before = fake(node.args[0]) if node.args else None
    if before is None:
        return None
    ndim = before.ndim
    axes: list[int | None] = list(range(ndim))
    if is_op(node, *_SAME):
        return axes
    if is_op(node, aten.permute):
        dims: Any = node.args[1]
        return [dim % ndim for dim in dims]
    if is_op(node, *_SWAPS):
        return _swap(axes, node.args[1], node.args[2])
    if is_op(node, aten.t, aten.numpy_T):
        return axes[::-1]
    if is_op(node, *_MOVES):
        return _moved(axes, node.args[1], node.args[2])
    if is_op(node, aten.unsqueeze):
        position: Any = node.args[1]
        axes.insert(position % (ndim + 1), None)
        return axes
    if is_op(node, aten.squeeze):
        gone = _squeezed(node, ndim)
        return [axis for axis in axes if axis not in gone or static(before.shape[axis or 0]) != 1]
    return None


def _swap(axes: list[int | None], a: Any, b: Any) -> list[int | None]:
    axes[a], axes[b] = axes[b], axes[a]
    return axes


def _moved(axes: list[int | None], source: Any, destination: Any) -> list[int | None]:
    """Do what `torch.movedim` does to the list of axes."""
    ndim = len(axes)
    sources = [s % ndim for s in (source if isinstance(source, (list, tuple)) else [source])]
    targets = [d % ndim for d in (destination if isinstance(destination, (list, tuple)) else [destination])]
    rest = iter(axis for axis in axes if axis not in sources)
    placed = dict(zip(targets, sources, strict=True))
    return [placed[i] if i in placed else next(rest) for i in range(ndim)]


def _squeezed(node: fx.Node, ndim: int) -> set[int]:
    dims = schema_args(node).get("dim")
    if dims is None:
        return set(range(ndim))
    return {d % ndim for d in (dims if isinstance(dims, (list, tuple)) else [dims])}

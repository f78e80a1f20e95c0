"""What twin rules work with: the values of the masked run and what stays of each axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.algebra.axes import Axis, in_parts, size_of
from fxprune.ops.slicer import Slicer, sizes_of_parts


@dataclass(eq=False)
class Twin(Slicer):
    """One masked run: full-size values, with sums and statistics over what stays.

    Attributes:
        read: the value of a node.
    """

    read: Callable[[fx.Node], Any] = field(kw_only=True)

    def value(self, argument: Any) -> Any:
        """Returns an argument with nodes replaced by their values."""
        return fx.node.map_arg(argument, self.read)

    def given(self, a: SimpleNamespace, /, **kept: Sequence[tuple[int, Axis]]) -> dict[str, Any]:
        """Returns the values of all arguments by schema name; of those named what stays, along (dim, axis) pairs."""
        values = {name: self.value(argument) for name, argument in vars(a).items()}
        named = {name: axes for name, axes in kept.items() if values.get(name) is not None}
        return values | {name: self.gather(values[name], axes) for name, axes in named.items()}

    def run(self, node: fx.Node, /, **arguments: Any) -> Any:
        """Runs a node's op on other arguments, by schema name."""
        assert callable(node.target)
        return node.target(**arguments)

    def kept(self, axis: Axis, device: torch.device) -> Tensor | None:
        """Returns the positions of an axis that stay, ``[count]``, or None for all of them."""
        return torch.from_numpy(self.index(axis)).to(device) if self.changed(axis) else None

    def gather(self, tensor: Tensor, axes: Sequence[tuple[int, Axis]]) -> Tensor:
        """Returns the part of a tensor, ``[...]``, that stays along the given (dim, axis) pairs."""
        for dim, axis in axes:
            if self.changed(axis):
                tensor, parts = _apart(tensor, dim, axis, size_of)
                for at, part in parts:
                    kept = self.kept(part, tensor.device)
                    tensor = tensor if kept is None else tensor.index_select(at, kept)
                tensor = tensor.flatten(dim, dim + len(parts) - 1)
        return tensor

    def scatter(self, tensor: Tensor, axes: Sequence[tuple[int, Axis]], sizes: Sequence[int] | None = None) -> Tensor:
        """Puts a part, ``[...]``, at its place in a tensor of full size (by default the axes'), zeros elsewhere."""
        for (dim, axis), size in zip(axes, sizes or [size_of(axis) for _, axis in axes], strict=True):
            if self.changed(axis):
                tensor, parts = _apart(tensor, dim, axis, self.count)
                for at, part in parts:
                    kept = self.kept(part, tensor.device)
                    shape = [*tensor.shape[:at], size if len(parts) == 1 else size_of(part), *tensor.shape[at + 1 :]]
                    tensor = tensor if kept is None else tensor.new_zeros(shape).index_copy(at, kept, tensor)
                tensor = tensor.flatten(dim, dim + len(parts) - 1)
        return tensor


def _apart(tensor: Tensor, dim: int, axis: Axis, size: Callable[[Axis], int]) -> tuple[Tensor, list[tuple[int, Axis]]]:
    """Returns a tensor, ``[...]``, with a dimension whose size is known only at run time as one for each part, and these."""
    if tensor.shape[dim] == size(axis):
        return tensor, [(dim, axis)]
    parts, sizes = in_parts(axis), sizes_of_parts(axis, size)
    return tensor.unflatten(dim, sizes), list(enumerate(parts, dim))


def in_precision(value: Any, dtype: torch.dtype | None) -> Any:
    """Returns a floating or complex tensor, ``[...]``, or floating dtype in precision ``dtype``; all else, or if None, as is."""
    if dtype is not None and isinstance(value, Tensor) and value.is_floating_point():
        return value.to(dtype)
    if dtype is not None and isinstance(value, Tensor) and value.is_complex():
        return value.to(torch.promote_types(dtype, torch.complex64))
    return dtype if dtype is not None and isinstance(value, torch.dtype) and value.is_floating_point else value

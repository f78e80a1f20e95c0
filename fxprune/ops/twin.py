"""What twin rules work with: the values of the masked run and what stays of each axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.algebra.axes import Axes, Axis
from fxprune.ops.slicer import Slicer


class Twin:
    """One masked run: full-size values, with sums and statistics over what stays."""

    def __init__(self, slicer: Slicer, value: Callable[[fx.Node], Any]) -> None:
        self._slicer = slicer
        self._value = value

    def value(self, argument: Any) -> Any:
        """Returns an argument with nodes replaced by their values."""
        return fx.node.map_arg(argument, self._value)

    def run(self, node: fx.Node, /, **arguments: Any) -> Any:
        """Runs a node's op on other arguments, by schema name."""
        assert callable(node.target)
        return node.target(**arguments)

    def axes(self, node: fx.Node, reader: fx.Node) -> Axes:
        """Returns the axes of an operand as its reader sees it."""
        return self._slicer.axes(node, reader)

    def made(self, node: fx.Node) -> Any:
        """Returns the axes of an op's own result, a list of them for several."""
        return self._slicer.axes(node)

    def noted(self, node: fx.Node, name: str) -> Axis:
        """Returns an axis that the op's couple rule kept."""
        return self._slicer.noted(node, name)

    def count(self, axis: Axis) -> int:
        """Returns how many coordinates stay."""
        return self._slicer.count(axis)

    def kept(self, axis: Axis, device: torch.device) -> Tensor | None:
        """Returns the positions of an axis that stay, or None for all of them."""
        if not self._slicer.changed(axis):
            return None
        return torch.from_numpy(self._slicer.index(axis)).to(device)

    def gather(self, tensor: Tensor, axes: Sequence[tuple[int, Axis]]) -> Tensor:
        """Returns the part of a tensor that stays along the given (dim, axis) pairs."""
        for dim, axis in axes:
            kept = self.kept(axis, tensor.device)
            if kept is not None:
                tensor = tensor.index_select(dim, kept)
        return tensor

    def scatter(self, tensor: Tensor, axes: Sequence[tuple[int, Axis]], sizes: Sequence[int]) -> Tensor:
        """Puts a part back at its place in a tensor of full size, zeros elsewhere."""
        for (dim, axis), size in zip(axes, sizes, strict=True):
            kept = self.kept(axis, tensor.device)
            if kept is not None:
                shape = list(tensor.shape)
                shape[dim] = size
                tensor = tensor.new_zeros(shape).index_copy(dim, kept, tensor)
        return tensor

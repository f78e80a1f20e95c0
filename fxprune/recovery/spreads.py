"""Spreads: where the outputs of a layer stand in a value, each told by its number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from fxprune._base.names import fetch
from fxprune.coupling.selection import Selection
from fxprune.ops.registry import bind, is_kind
from fxprune.recovery.consumers import own_parameter


@dataclass(frozen=True, slots=True, eq=False)
class Maker:
    """A linear layer or convolution whose outputs are followed.

    Attributes:
        node: the op in the captured graph.
        weight: the weight's name; outputs lie along its first dimension.
        bias: the bias' name, if there is one.
        outputs: how many there are.
    """

    node: fx.Node
    weight: str
    bias: str | None
    outputs: int


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """A layer's outputs at their places in a value.

    Attributes:
        maker: the layer.
        rows: the number of the output at each place, int64, of the value's shape.
        mixed: numbers, of the value's shape, that are equal where places were mixed by the same weights; None before that.
    """

    maker: Maker
    rows: Tensor
    mixed: Tensor | None = None

    def moved(self, move: Callable[[Tensor], Any]) -> Spread:
        """Returns the spread of a value that holds the same things elsewhere: ``move`` is of tensors ``[...]``."""
        return replace(self, rows=move(self.rows), mixed=None if self.mixed is None else move(self.mixed))

    def mixable(self, dim: int) -> bool:
        """Returns whether what is summed along a dimension is one output, at many places, that nothing has mixed yet."""
        return self.mixed is None and bool((self.rows == self.rows.narrow(dim, 0, 1)).all())


def makers(selection: Selection) -> dict[fx.Node, Maker]:
    """Returns the layers that lose outputs and whose weights may be changed, by node."""
    coupling, found = selection.coupling, {}
    for contraction in coupling.contractions:
        node, weight = contraction.node, contraction.weight
        if weight is None or not is_kind(node, "linear", "conv") or len(weight.users) > 1:
            continue
        rows, a = coupling.values[weight][0], bind(node)
        tensor, biased = fetch(coupling.captured.module, str(weight.target)), a.bias is not None
        bias = own_parameter(coupling, a.bias)
        plain = tensor.dim() > 1 and not tensor.is_complex() and getattr(a, "groups", 1) == 1
        plain &= is_kind(node, "linear") or len(coupling.captured.info[a.input].shape) == tensor.dim()  # with a batch
        if selection.slicer.changed(rows) and plain and biased == bool(bias):
            found[node] = Maker(node, str(weight.target), bias, len(tensor))
    return found


def spread_of(maker: Maker, value: Tensor) -> Spread:
    """Returns the spread of a layer's own outputs, ``[..., outputs]`` or ``[batch, outputs, ...]``."""
    dim = value.dim() - 1 if is_kind(maker.node, "linear") else 1
    rows = torch.arange(value.shape[dim], device=value.device)
    return Spread(maker, rows.reshape(-1, *[1] * (value.dim() - 1 - dim)).expand(value.shape))

"""Spreads: where the outputs of a layer stand in a value, each told by its number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from fxprune._base.names import fetch
from fxprune.coupling.selection import Selection
from fxprune.recovery.affine import Affine, added_to, affine_of, own_parameter


@dataclass(frozen=True, slots=True, eq=False)
class Maker:
    """A linear layer or convolution whose outputs are followed.

    Attributes:
        node: the op in the captured graph, or the addition of its bias behind it.
        weight: the weight's name.
        bias: the bias' name, if there is one.
        outputs: how many there are.
        affine: what the op is.
    """

    node: fx.Node
    weight: str
    bias: str | None
    outputs: int
    affine: Affine

    @property
    def tensors(self) -> dict[str, int]:
        """The dimension along which the outputs lie, by the names of weight and bias."""
        return {self.weight: self.affine.outward} | ({} if self.bias is None else {self.bias: 0})


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

    def outputs(self) -> Tensor:
        """Returns the numbers of the outputs that are there, ``[outputs]`` ascending; places along which none differs are looked at once."""
        rows: Tensor = self.rows
        for dim, step in enumerate(rows.stride()):
            rows = rows.narrow(dim, 0, 1) if step == 0 and rows.shape[dim] > 1 else rows
        found: Tensor = rows.unique()
        return found.cpu()

    def mixable(self, dim: int) -> bool:
        """Returns whether what is summed along a dimension is one output, at many places, that nothing has mixed yet."""
        return self.mixed is None and bool((self.rows == self.rows.narrow(dim, 0, 1)).all())


def makers(selection: Selection) -> dict[fx.Node, Maker]:
    """Returns the layers that lose outputs and whose weights may be changed, by node."""
    coupling, found = selection.coupling, {}
    for contraction in coupling.contractions:
        node, weight = contraction.node, contraction.weight
        affine = affine_of(coupling, contraction)
        if weight is None or affine is None or len(weight.users) > 1:
            continue
        tensor, bias = fetch(coupling.captured.module, str(weight.target)), own_parameter(coupling, affine.bias)
        if tensor.dim() < 2 or tensor.is_complex() or getattr(affine.arguments, "groups", 1) > 1:
            continue
        rows, batched = coupling.values[weight][affine.outward], len(coupling.captured.info[affine.input].shape)
        whole = (affine.last or batched == tensor.dim()) and (affine.bias is None) == (bias is None)
        if selection.slicer.changed(rows) and whole:
            end, bias = added_to(coupling, node, affine) or (node, bias)
            found[end] = Maker(end, str(weight.target), bias, tensor.shape[affine.outward], affine)
    return found


def spread_of(maker: Maker, value: Tensor) -> Spread:
    """Returns the spread of a layer's own outputs, ``[..., outputs]`` or ``[batch, outputs, ...]``."""
    dim = value.dim() - 1 if maker.affine.last else 1
    rows = torch.arange(value.shape[dim], device=value.device)
    return Spread(maker, rows.reshape(-1, *[1] * (value.dim() - 1 - dim)).expand(value.shape))

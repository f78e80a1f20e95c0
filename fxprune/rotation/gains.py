"""Gains: what an op multiplies each channel of a stream by, and adds to it; how its parameters are to be for it to do neither."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.ops.registry import bind, is_kind, rule_at


@dataclass(frozen=True, slots=True, eq=False)
class Gain:
    """Of an op: ``result = core * factor + offset``.

    Attributes:
        main: the operand that the core is of.
        factor: ``[channels]``.
        neutral: operands, and the values with which the result is the core.
        offset: ``[channels]``; None if nothing is added.
        holder: the operand that can hold an offset.
        sign: the offset is so many times what the holder is.
    """

    main: fx.Node
    factor: Tensor
    neutral: Mapping[fx.Node, Tensor]
    offset: Tensor | None = None
    holder: fx.Node | None = None
    sign: int = 1


def operands_of_gain(node: fx.Node, constant: set[fx.Node]) -> tuple[fx.Node, ...]:
    """Returns the operands that make an op's gain, and with them what it adds; none if it has no gain.

    Args:
        node: the op.
        constant: values on streams that depend on no input.
    """
    rule = rule_at(node)
    if is_kind(node, "norm", "batch_norm"):
        a = bind(node)
        given = (a.weight, getattr(a, "bias", None), getattr(a, "running_mean", None), getattr(a, "running_var", None))
        found = tuple(each for each in given if isinstance(each, fx.Node))
        trains = getattr(a, "training", False)
        return found if not trains and all(each in constant for each in found) else ()
    if rule is None or not rule.scales or len(node.all_input_nodes) != 2:
        return ()
    found = tuple(each for each in node.all_input_nodes if each in constant)
    return found if len(found) == 1 else ()


def gain_of(node: fx.Node, operands: tuple[fx.Node, ...], values: Mapping[fx.Node, Any]) -> Gain | None:
    """Returns what an op does to each channel, given the operands that say so and all values; None if it is not of each channel alone."""
    if not is_kind(node, "norm", "batch_norm"):
        (gain,) = operands
        if values[gain].numel() != max(values[gain].shape):
            return None  # it is of places as well
        other = next(each for each in node.all_input_nodes if each is not gain)
        return Gain(other, values[gain].reshape(-1), {gain: torch.ones_like(values[gain])})
    a = bind(node)
    weight, bias = (
        values[each] if isinstance(each, fx.Node) else None for each in (a.weight, getattr(a, "bias", None))
    )
    neutral = {each: torch.zeros_like(values[each]) for each in operands}
    if weight is not None:
        neutral[a.weight] = torch.ones_like(weight)
    holder = a.bias if bias is not None else None
    if not is_kind(node, "batch_norm"):
        return None if weight is None else Gain(a.input, weight, neutral, bias, holder)
    if not isinstance(a.running_var, fx.Node):
        return None
    neutral[a.running_var] = torch.full_like(values[a.running_var], 1 - a.eps)
    scale = (values[a.running_var] + a.eps).rsqrt() * (1.0 if weight is None else weight)
    offset = -values[a.running_mean] * scale + (0.0 if bias is None else bias)
    return Gain(a.input, scale, neutral, offset, holder or a.running_mean, 1 if holder is not None else -1)

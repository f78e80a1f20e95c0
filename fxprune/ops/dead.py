"""Dead channels: which channels of which values are zero for every input, as far as the weights tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx

from fxprune._base.names import fetch
from fxprune.capturing.captured import Captured, TensorInfo
from fxprune.capturing.shapes import REFUSALS
from fxprune.ops.constants import Constants
from fxprune.ops.registry import bind, is_kind, rule_of


@dataclass(frozen=True, slots=True, eq=False)
class Zeros:
    """Channels of a value that are zero for every input: flags ``[channels]``, and the dimension that they lie along."""

    dim: int
    flags: Tensor


def dead_channels(captured: Captured) -> dict[fx.Node, Zeros]:
    """Returns the values of a captured model of which it is known, and of which some channels are zero but not all."""
    zeros: dict[fx.Node, Zeros] = {}
    for node in captured.module.graph.nodes:
        if node.op == "call_function" and isinstance(captured.info.get(node), TensorInfo):
            dead = follow(captured, node, zeros)
            if dead is not None and bool(dead.flags.any()) and not bool(dead.flags.all()):
                zeros[node] = dead
    return zeros


def follow(captured: Captured, node: fx.Node, zeros: Mapping[fx.Node, Zeros]) -> Zeros | None:
    """Returns which channels of an op's result are zero, or whatever else ``zeros`` flags, if that is known."""
    rule, rank = rule_of(node.target), len(captured.info[node].shape)
    sources = [source for source in node.all_input_nodes if isinstance(captured.info.get(source), TensorInfo)]
    if rule is None or not sources:
        return None
    a = bind(node)
    if is_kind(node, "linear", "conv", "embedding"):
        return _made(captured, node, a, rank)
    if is_kind(node, "batch_norm", "norm"):
        return _scaled(captured, node, a)
    if is_kind(node, "addition") or rule.scales:
        return _joined(captured, sources, zeros, rank, every=not rule.scales)
    if sources[0] not in zeros or len(sources) != 1:
        return None
    first = zeros[sources[0]]
    if rule.moves is not None:
        dim = rule.moves(Constants(captured.info, {sources[0]: first.dim}), node, a)
        fits = dim is not None and captured.info[node].shape[dim] == len(first.flags)
        return Zeros(dim, first.flags) if dim is not None and fits else None
    return first if is_kind(node, "elementwise") and _keeps_zero(node) else None


def _made(captured: Captured, node: fx.Node, a: SimpleNamespace, rank: int) -> Zeros | None:
    """Returns the outputs of a layer whose weights, and bias, are all zero."""
    held = [a.weight, getattr(a, "bias", None)]
    if any(x is not None and x.op != "get_attr" for x in held):
        return None
    weight = fetch(captured.module, str(a.weight.target)).detach()
    if weight.is_meta:
        return None
    rows = weight.movedim(1 if is_kind(node, "embedding") else 0, 0).flatten(1)
    flags = (rows == 0).all(dim=1)
    if held[1] is not None:
        flags &= fetch(captured.module, str(held[1].target)).detach() == 0
    return Zeros(1 if is_kind(node, "conv") else rank - 1, flags.cpu())


def _scaled(captured: Captured, node: fx.Node, a: SimpleNamespace) -> Zeros | None:
    """Returns the channels that a norm multiplies by zero, and adds none to."""
    held = [x for x in (a.weight, getattr(a, "bias", None)) if x is not None]
    if a.weight is None or any(x.op != "get_attr" for x in held):
        return None
    values = [fetch(captured.module, str(x.target)).detach() for x in held]
    if values[0].dim() != 1 or any(value.is_meta for value in values):
        return None
    last = hasattr(a, "normalized_shape")
    flags = torch.stack([value == 0 for value in values]).all(dim=0)
    return Zeros(len(captured.info[node].shape) - 1 if last else 1, flags.cpu())


def _joined(
    captured: Captured, sources: list[fx.Node], zeros: Mapping[fx.Node, Zeros], rank: int, *, every: bool
) -> Zeros | None:
    """Returns the channels that are zero in every operand, or in any; operands that are not known have none."""
    known = [zeros[s] for s in sources if s in zeros and len(captured.info[s].shape) == rank]
    if not known or (every and len(known) < len(sources)) or len({(z.dim, len(z.flags)) for z in known}) > 1:
        return None
    flags = torch.stack([z.flags for z in known])
    return Zeros(known[0].dim, flags.all(dim=0) if every else flags.any(dim=0))


def _keeps_zero(node: fx.Node) -> bool:
    """Returns whether an op of one value makes zero of zero."""
    zero = torch.zeros(1)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda _: zero)
    assert callable(node.target)
    try:
        value: Any = node.target(*args, **kwargs)
    except REFUSALS:
        return False
    return isinstance(value, Tensor) and not bool(value.any())

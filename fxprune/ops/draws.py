"""Draws: random numbers in the place of a value, and results that surely vary everywhere, known without the work of computing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from fxprune.capturing.regions import AUTOCAST
from fxprune.capturing.shapes import REFUSALS
from fxprune.ops.registry import bind, is_kind, rule_of

#: Signs of the draws: whatever passes only what is positive, as a relu does, passes each number in one of two.
SIGNS = (1, -1, 1, -1)
#: Of each value of a pointwise op so many numbers are tried.
_TRIED = 16


@dataclass(frozen=True, slots=True, eq=False)
class Varying:
    """A value of which no place is the same for all inputs.

    Attributes:
        like: its shape and dtype, on the meta device.
        device: where it is.
    """

    like: Tensor
    device: torch.device

    def drawn(self, *shape: int) -> list[Tensor]:
        """Returns numbers for each draw, ``[...]`` in its own shape or another."""
        return numbers(torch.empty(shape or self.like.shape, dtype=self.like.dtype, device=self.device))


#: One value for each draw, the same in some places, or what varies everywhere.
Drawn: TypeAlias = "list[Any] | Varying"


def numbers(like: Tensor) -> list[Tensor]:
    """Returns numbers for each draw, ``[...]`` as the given tensor, of both signs and none near zero; whole numbers and flags as they are."""
    if not is_real_or_complex(like):
        return [like] * len(SIGNS)
    halves = [_magnitudes(like) for _ in range(len(SIGNS) // 2)]
    return [halves[i // 2] * sign for i, sign in enumerate(SIGNS)]


def is_real_or_complex(value: Any) -> bool:
    """Returns whether a value is a tensor of numbers that a model computes with."""
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def same(results: Sequence[Tensor]) -> Tensor:
    """Returns where the results of all draws, ``[...]`` each, are the same, in their shape."""
    return torch.stack([result == results[0] for result in results]).all(dim=0)


def _magnitudes(like: Tensor) -> Tensor:
    drawn = torch.rand(like.shape, device=like.device) * 3 + 1.1
    signed = torch.copysign(drawn, torch.rand(like.shape, device=like.device) - 0.5)
    return torch.complex(signed, drawn).to(like.dtype) if like.is_complex() else signed.to(like.dtype)


def varying_result(node: fx.Node, values: Mapping[fx.Node, Drawn]) -> Varying | None:
    """Returns the result of an op if it surely varies everywhere, as what it reads does; None if that is to be tried.

    Args:
        node: a call of an op.
        values: of the nodes that it reads, and others.
    """
    reads = {source: values[source] for source in node.all_input_nodes}
    varying = [value for value in reads.values() if isinstance(value, Varying)]
    if not varying or AUTOCAST in node.meta or not _surely(node, reads):
        return None
    own = {source: value.like if isinstance(value, Varying) else _on_meta(value[0]) for source, value in reads.items()}
    try:
        result = called(node, own)
    except (*REFUSALS, NotImplementedError):
        return None
    return Varying(result, varying[0].device) if is_real_or_complex(result) else None


def called(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """Returns what an op makes of values for the nodes that it reads."""
    assert callable(node.target)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    return node.target(*args, **kwargs)


def _on_meta(value: Any) -> Any:
    return value.detach().to("meta") if isinstance(value, Tensor) else value


def _surely(node: fx.Node, reads: Mapping[fx.Node, Drawn]) -> bool:
    rule = rule_of(node.target)
    if rule is None:
        return False
    a = bind(node)
    plain = {source: value[0] for source, value in reads.items() if not isinstance(value, Varying)}
    only = not any(isinstance(value, Tensor) for value in plain.values())
    if rule.view or getattr(node.target, "is_view", False) or is_kind(node, "attention"):
        return only
    if is_kind(node, "linear", "conv", "conv_transpose"):
        return a.input not in plain and (a.weight not in plain or _all_count(plain[a.weight], plain.get(a.bias)))
    pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
    added = is_kind(node, "addition") and all(
        is_real_or_complex(v) and v.numel() for v in plain.values() if isinstance(v, Tensor)
    )
    return pointwise and (only or added) and _varies(node, reads)


def _all_count(weight: Tensor, bias: Tensor | None) -> bool:
    """Returns whether no slice of a weight is zero, or so small that a bias leaves nothing of it."""
    sizes = weight.detach().abs()
    least = min(float(sizes.movedim(d, 0).flatten(1).amax(dim=1).min()) for d in range(sizes.dim()))
    beside = 0.0 if bias is None else float(bias.detach().abs().max()) * torch.finfo(weight.dtype).eps
    return least > 100 * beside


def _varies(node: fx.Node, reads: Mapping[fx.Node, Drawn]) -> bool:
    """Returns whether a pointwise op gives other numbers for other numbers, beside the largest of those that are added to them."""
    tried = {
        source: value.drawn(_TRIED) if isinstance(value, Varying) else [_largest(one) for one in value]
        for source, value in reads.items()
    }
    results = [called(node, {source: draws[i] for source, draws in tried.items()}) for i in range(len(SIGNS))]
    return not bool(same(results).any())


def _largest(value: Any) -> Any:
    return value.detach().flatten()[value.abs().argmax()] if isinstance(value, Tensor) else value

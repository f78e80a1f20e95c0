"""Products of two activations, summed over channels, such as queries and keys: which heads meet, and what follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.ops.registry import bind, is_kind, rule_at
from fxprune.ops.tracer import Contraction
from fxprune.recovery.protocol import RecoveryContext
from fxprune.twin.interpreter import Run


def products(context: RecoveryContext) -> list[Contraction]:
    """Returns the products of two activations that lose channels."""
    coupling, changed = context.selection.coupling, context.selection.slicer.changed
    return [c for c in coupling.contractions if c.weight is None and c.other is not None and changed(c.axis)]


def operands_of(contraction: Contraction) -> tuple[fx.Node, fx.Node]:
    """Returns the operands of a product of two activations."""
    assert contraction.other is not None
    return contraction.source, contraction.other[0]


def pairs_of(
    run: Run, contraction: Contraction, values: Mapping[fx.Node, Any], firsts: Sequence[Tensor]
) -> Tensor | None:
    """Returns what of two operands meets in the sums, ``[pairs, 2]``, told by a number for each vector; below 0 for nothing."""
    node = contraction.node
    if is_kind(node, "attention"):
        left, right = (first.amax(-1) for first in firsts)
        if any(
            ((first >= 0) & (first != one[..., None])).any() for first, one in zip(firsts, (left, right), strict=True)
        ):
            return None  # heads lie where places are: all of them meet
        right = repeated(bind(node), left, right, -1)
        met = torch.broadcast_tensors(left, right)
    else:
        operands = ((contraction.source, contraction.dim), contraction.other or (contraction.source, 0))
        if len(node.all_input_nodes) != 2:
            return None
        marks = [hot(values[n], dim, first) for (n, dim), first in zip(operands, firsts, strict=True)]
        ones = [hot(values[n], dim, 1) for n, dim in operands]
        (a, _), (b, _) = operands
        if not (run.step(node, {**values, a: ones[0], b: ones[1]}, iter(())) == 1).all():
            return None  # more than channels is summed, or something is added
        met = [
            run.step(node, {**values, a: x, b: y}, iter(())).long()
            for x, y in ((marks[0], ones[1]), (ones[0], marks[1]))
        ]
    found: Tensor = torch.stack([x.reshape(-1) for x in met], dim=1).unique(dim=0)
    return found


def hot(like: Tensor, dim: int, value: Tensor | int) -> Tensor:
    """Returns float64 zeros of a value's shape, ``[...]``, but for the first place along a dimension."""
    found = torch.zeros(like.shape, dtype=torch.float64, device=like.device)
    found.select(dim, 0)[...] = value
    return found


def repeated(a: Any, queries: Tensor, grouped: Tensor, dim: int) -> Tensor:
    """Returns the heads of keys or values, ``[..., heads, ...]``, once for each head of the queries; the dimension counts from the end."""
    times = queries.shape[dim] // grouped.shape[dim] if a.enable_gqa else 1
    return grouped.repeat_interleave(times, dim) if times > 1 else grouped


def shifted_side(node: fx.Node, info: Mapping[fx.Node, Any]) -> int | None:
    """Returns the side of a product whose mean over places changes nothing, because a softmax over them follows; None if none."""
    if is_kind(node, "attention"):
        return 1
    if not hasattr(bind(node), "self"):
        return None  # an einsum may have its places anywhere
    while len(node.users) == 1:
        user, sizes = next(iter(node.users)), info[node].shape
        if is_kind(user, "softmax"):
            return {len(sizes) - 1: 1, len(sizes) - 2: 0}.get(bind(user).dim % len(sizes))
        rule, scaled = rule_at(user), user.all_input_nodes == [node]
        same = rule is not None and (rule.conducts or (scaled and rule.powers.get("self") == 1.0))
        if (
            not same
            and not is_kind(user, "addition")
            and not (is_kind(user, "reshape") and info[user].shape[-2:] == sizes[-2:])
        ):
            return None
        node = user
    return None


def left_alone(context: RecoveryContext, done: Set[fx.Node]) -> list[str]:
    """Returns a line for each product that loses channels which nothing makes up for."""
    return [
        f"{node.meta.get('module') or node.name}: what goes of both operands of {node.target} is not made up for: they are more "
        "than layers' outputs moved and scaled, or something else reads these as well"
        for node in dict.fromkeys(c.node for c in products(context))
        if node not in done
    ]

"""Dead channels: which channels of which values are zero for every input, as far as the weights tell.

The graph is run on random numbers, each op on other ones than the op before it gave; but where that gave the same in every
draw, such as zero, it stays. What an op makes the same of any numbers it makes of every input, whatever op it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune._base.graphs import last_uses
from fxprune._base.modes import random_states_kept
from fxprune._base.names import fetch
from fxprune.capturing.captured import Captured, TensorInfo
from fxprune.capturing.regions import mode_of
from fxprune.capturing.shapes import REFUSALS
from fxprune.ops.registry import is_kind

#: For each dimension along which some slices of a value are zero for every input, and others are not: which, ``[size]``.
Dead: TypeAlias = "Mapping[int, Tensor]"

#: Signs of the draws: whatever passes only what is positive, as a relu does, passes each number in one of two.
_SIGNS = (1, -1, 1, -1)
_BATCH = 2


def dead_channels(captured: Captured, of: Collection[fx.Node]) -> dict[fx.Node, Dead]:
    """Returns those of some nodes of which some channels, but not all, are zero for every input."""
    found: dict[fx.Node, Dead] = {}
    held = captured.module.graph.find_nodes(op="get_attr")
    if not of or not any(_has_zero_slices(captured, node) for node in held):
        return found
    with torch.no_grad(), random_states_kept():
        torch.manual_seed(0)
        for node, draws in _drawn(captured):
            if node in of and isinstance(draws[0], Tensor):
                found[node] = _slices(draws[0] == 0)
    return {node: dead for node, dead in found.items() if dead}


def _has_zero_slices(captured: Captured, node: fx.Node) -> bool:
    """Returns whether a weight has zeros that may make a channel zero; a bias of zeros alone makes none."""
    held = fetch(captured.module, str(node.target))
    if not isinstance(held, Tensor) or held.is_meta or not held.is_floating_point():
        return False
    zero = held.detach() == 0
    if not bool(zero.any()) or bool(zero.all()):
        return bool(zero.all()) and held.dim() > 1
    rows = held.dim() > 1 and all(is_kind(user, "embedding") for user in node.users)  # those of a table are no channels
    return bool(_slices(zero).keys() - ({0} if rows else set()))


def _slices(zero: Tensor) -> Dead:
    """Returns along which dimensions some slices are all zero, but not all slices are."""
    flags = {d: zero.movedim(d, 0).flatten(1).all(dim=1) if zero.dim() > 1 else zero for d in range(zero.dim())}
    return {d: dead.cpu() for d, dead in flags.items() if bool(dead.any()) and not bool(dead.all())}


def _drawn(captured: Captured) -> Iterator[tuple[fx.Node, list[Any]]]:
    """Yields each node with one value for each draw, the same in some places; until an op takes none and is of no known shape."""
    values: dict[fx.Node, list[Any]] = {}
    inputs = iter(_inputs(captured))
    last = last_uses(list(captured.module.graph.nodes))
    for node in captured.module.graph.nodes:
        if node.op == "get_attr":
            values[node] = [_held(captured, node)] * len(_SIGNS)
        elif node.op == "placeholder":
            values[node] = _numbers(next(inputs))
        elif node.op == "call_function":
            try:
                values[node] = _redrawn(_called(node, values))
            except REFUSALS:  # numbers that the model would never give it
                if (stand_in := _stand_in(captured, node)) is None:
                    return
                values[node] = _numbers(stand_in)
        else:
            return
        yield node, values[node]
        for source in last.get(node, ()):
            del values[source]


def _held(captured: Captured, node: fx.Node) -> Any:
    value = fetch(captured.module, str(node.target))
    return value.clone() if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) else value


def _inputs(captured: Captured) -> Iterator[Tensor]:
    """Yields the example's leaves; the first two of a batch that is free."""
    for leaf, node in zip(captured.example, captured.module.graph.find_nodes(op="placeholder"), strict=True):
        shape = _shape(captured, captured.info[node])
        yield leaf.detach()[: shape[0]] if shape else leaf.detach()


def _shape(captured: Captured, info: TensorInfo) -> list[int]:
    free, batch = captured.batch
    return [min(n, _BATCH) if size == free != batch else n for size, n in zip(info.shape, info.example, strict=True)]


def _stand_in(captured: Captured, node: fx.Node) -> Tensor | None:
    """Returns a tensor like an op's result, of zeros; None if it has several."""
    info = captured.info.get(node)
    if not isinstance(info, TensorInfo):
        return None
    device = next((leaf.device for leaf in captured.example), None)
    return torch.zeros(_shape(captured, info), dtype=info.dtype, device=device)


def _called(node: fx.Node, values: Mapping[fx.Node, list[Any]]) -> list[Any]:
    assert callable(node.target)
    results = []
    with mode_of(node):
        for i in range(len(_SIGNS)):
            own = {source: values[source][i] for source in node.all_input_nodes}
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), own.__getitem__)
            results.append(node.target(*args, **kwargs))
    return results


def _redrawn(results: list[Any]) -> list[Any]:
    """Returns other numbers, but what is the same in all results; whole numbers and flags as they are."""
    leaves, specs = zip(*(pytree.tree_flatten(result) for result in results), strict=True)
    drawn = [_others(same) for same in zip(*leaves, strict=True)]
    return [pytree.tree_unflatten(list(one), specs[0]) for one in zip(*drawn, strict=True)]


def _others(results: tuple[Any, ...]) -> Sequence[Any]:
    first = results[0]
    if not _is_real_or_complex(first):
        return results
    same = torch.stack([value == first for value in results]).all(dim=0)
    return [torch.where(same, first, value) for value in _numbers(first)]


def _numbers(like: Tensor) -> list[Tensor]:
    """Returns numbers for each draw, of both signs and none of them near zero; whole numbers and flags as they are."""
    if not _is_real_or_complex(like):
        return [like] * len(_SIGNS)
    halves = [_magnitudes(like) for _ in range(len(_SIGNS) // 2)]
    return [halves[i // 2] * sign for i, sign in enumerate(_SIGNS)]


def _is_real_or_complex(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _magnitudes(like: Tensor) -> Tensor:
    drawn = torch.rand(like.shape, device=like.device) * 3 + 1.1
    signed = torch.copysign(drawn, torch.rand(like.shape, device=like.device) - 0.5)
    return torch.complex(signed, drawn).to(like.dtype) if like.is_complex() else signed.to(like.dtype)

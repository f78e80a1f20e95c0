"""Dead channels: which channels of which values are zero for every input, as far as the weights tell.

The graph is run on random numbers, each op on other ones than the op before it gave; but where that gave the same in every
draw, such as zero, it stays. What an op makes the same of any numbers it makes of every input, whatever op it is. An op that
surely makes nothing the same of what varies everywhere is not run: its numbers are drawn if another asks for them.
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
from fxprune.ops.draws import SIGNS, Drawn, Varying, called, is_real_or_complex, numbers, same, varying_result
from fxprune.ops.registry import is_kind

#: For each dimension along which some slices of a value are zero for every input, and others are not: which, ``[size]``.
Dead: TypeAlias = "Mapping[int, Tensor]"

#: Of a batch that is free so many samples are drawn.
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
            if node in of and isinstance(draws, list) and isinstance(draws[0], Tensor):
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


def _drawn(captured: Captured) -> Iterator[tuple[fx.Node, Drawn]]:
    """Yields each node with its draws; until an op takes none and is of no known shape."""
    values: dict[fx.Node, Drawn] = {}
    inputs = iter(_inputs(captured))
    last = last_uses(list(captured.module.graph.nodes))
    for node in captured.module.graph.nodes:
        if node.op == "get_attr":
            values[node] = [_held(captured, node)] * len(SIGNS)
        elif node.op == "placeholder":
            values[node] = _varying(next(inputs))
        elif node.op != "call_function":
            return
        elif (result := varying_result(node, values)) is not None:
            values[node] = result
        else:
            try:
                values[node] = _redrawn(_called(node, values))
            except REFUSALS:  # numbers that the model would never give it
                if (stand_in := _stand_in(captured, node)) is None:
                    return
                values[node] = _varying(stand_in)
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


def _varying(like: Tensor) -> Drawn:
    """Returns what varies everywhere in the place of a tensor; whole numbers and flags as they are."""
    return Varying(like.to("meta"), like.device) if is_real_or_complex(like) else [like] * len(SIGNS)


def _called(node: fx.Node, values: Mapping[fx.Node, Drawn]) -> list[Any]:
    reads = {source: values[source] for source in node.all_input_nodes}
    draws = {source: value.drawn() if isinstance(value, Varying) else value for source, value in reads.items()}
    with mode_of(node):
        return [called(node, {source: each[i] for source, each in draws.items()}) for i in range(len(SIGNS))]


def _redrawn(results: list[Any]) -> Drawn:
    """Returns other numbers, but what is the same in all results; whole numbers and flags as they are."""
    leaves, specs = zip(*(pytree.tree_flatten(result) for result in results), strict=True)
    if is_real_or_complex(results[0]) and not bool(same(results).any()):
        return _varying(results[0])
    drawn = [_others(draws) for draws in zip(*leaves, strict=True)]
    return [pytree.tree_unflatten(list(one), specs[0]) for one in zip(*drawn, strict=True)]


def _others(results: Sequence[Any]) -> Sequence[Any]:
    if not is_real_or_complex(results[0]):
        return results
    return [torch.where(same(results), results[0], value) for value in numbers(results[0])]

"""Shapes of every node, found by running the graph on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from fxprune.capture.sizes import Sizes, static

__all__ = ["TensorInfo", "infer", "replay"]

_FACTORS = (1, 32, 3360)
_DYNAMIC = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Shape and dtype of a node's value.

    Attributes:
        shape: Sizes with every dynamic dimension replaced by a large prime.
        example: Sizes at the example.
        dtype: The element type.
    """

    shape: tuple[int, ...]
    example: tuple[int, ...]
    dtype: torch.dtype


def infer(
    module: fx.GraphModule, example: Sequence[Tensor], batched: Sequence[bool], sizes: Sizes
) -> tuple[dict[fx.Node, Any], tuple[int, int]]:
    """Return what every node is: a `TensorInfo`, a list of them, an int (a size, at the primes), or None.

    The graph is run twice, at the primes and at the example sizes. Where the model divides a dynamic size, the
    primes are multiplied by numbers with many divisors; the last resort is the example sizes alone.

    Args:
        module: The normalised graph; its placeholders still carry export's fake tensors.
        example: The example leaves.
        batched: For each placeholder, whether its dimension 0 is the batch.
        sizes: The primes of the symbols.

    Returns:
        The table, and the batch size as (value in the table, value in the example).
    """
    symbolic = [node.meta["val"].shape for node in module.graph.nodes if node.op == "placeholder"]
    concrete = [tuple(leaf.shape) for leaf in example]
    small = replay(module, example, concrete, _at_example(symbolic, concrete))
    shapes, large = concrete, small
    for factor in _FACTORS:
        scaled = Sizes({symbol: prime * factor for symbol, prime in sizes.primes.items()})
        try:
            shapes = [scaled.shape(shape) for shape in symbolic]
            large = replay(module, example, shapes, scaled)
            break
        except (RuntimeError, ValueError, IndexError, TypeError):
            shapes, large = concrete, small
    pairs = zip(symbolic, shapes, concrete, batched, strict=True)
    batch = next(((now[0], then[0]) for expr, now, then, flag in pairs if flag and static(expr[0]) is None), (1, 1))
    return {node: _describe(large.get(node), small.get(node)) for node in module.graph.nodes}, batch


def replay(
    module: fx.GraphModule, leaves: Sequence[Tensor], shapes: Sequence[tuple[int, ...]], sizes: Sizes
) -> dict[fx.Node, Any]:
    """Run the graph on meta tensors of the given shapes and return every node's value.

    Where an operator's result depends on data, export's own fake value stands in.
    """
    env: dict[fx.Node, Any] = {}
    inputs = iter(zip(leaves, shapes, strict=True))
    with torch.no_grad():
        for node in module.graph.nodes:
            if node.op == "placeholder":
                leaf, shape = next(inputs)
                env[node] = torch.empty(shape, dtype=leaf.dtype, device="meta")
            elif node.op == "get_attr":
                env[node] = _meta(_attribute(module, str(node.target)))
            elif node.op == "call_function":
                env[node] = _call(node, env, sizes)
    return env


def _at_example(symbolic: Sequence[Sequence[Any]], concrete: Sequence[tuple[int, ...]]) -> Sizes:
    values = {}
    for shape, numbers in zip(symbolic, concrete, strict=True):
        for size, number in zip(shape, numbers, strict=True):
            if static(size) is None and size.node.expr.is_Symbol:
                values[size.node.expr] = number
    return Sizes(values)


def _call(node: fx.Node, env: dict[fx.Node, Any], sizes: Sizes) -> Any:
    target: Callable[..., Any] = node.target  # type: ignore[assignment]
    value = node.meta.get("val")
    if any(tag in getattr(target, "tags", ()) for tag in _DYNAMIC) and free_unbacked_symbols(value):
        return _stand_in(value, sizes)
    args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
    return target(*args, **kwargs)


def _stand_in(value: Any, sizes: Sizes) -> Any:
    if isinstance(value, (list, tuple)):
        return [_stand_in(item, sizes) for item in value]
    if isinstance(value, Tensor):
        return torch.empty(sizes.shape(value.shape), dtype=value.dtype, device="meta")
    return sizes.of(value) if isinstance(value, torch.SymInt) else value


def _attribute(module: fx.GraphModule, name: str) -> Any:
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _meta(value: Any) -> Any:
    return value.detach().to("meta") if isinstance(value, Tensor) else value


def _describe(large: Any, small: Any) -> Any:
    if isinstance(large, Tensor):
        example = tuple(small.shape) if isinstance(small, Tensor) else tuple(large.shape)
        return TensorInfo(tuple(large.shape), example, large.dtype)
    if isinstance(large, (list, tuple)):
        smalls = small if isinstance(small, (list, tuple)) else large
        return [_describe(a, b) for a, b in zip(large, smalls, strict=True)]
    return large if isinstance(large, int) and not isinstance(large, bool) else None

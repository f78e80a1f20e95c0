"""Shapes of every node, found by running the graph on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune._base.errors import CaptureError
from fxprune._base.names import fetch
from fxprune.capturing.regions import AUTOCAST
from fxprune.capturing.sizes import Sizes, static

aten = torch.ops.aten
_SMALL = ((251, 241, 239), (61, 59, 53), (13, 11, 7))
_FACTORS = (32, 3360)
_KEEPS_SHAPE = {  # known results: the meta kernels of these decompose, and take milliseconds
    getattr(aten, name).default
    for name in [
        "layer_norm",
        "group_norm",
        "batch_norm",
        "instance_norm",
        "dropout",
        "relu",
        "gelu",
        "silu",
        "contiguous",
    ]
}
_ARITHMETIC = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor}
#: What an op raises at sizes that it was not captured for.
REFUSALS = (RuntimeError, ValueError, IndexError, TypeError, ArithmeticError)
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
) -> tuple[dict[fx.Node, Any], dict[fx.Node, Any], tuple[int, int]]:
    """Return what every node is: a `TensorInfo`, a list of them, an int (a size, at the primes), or None.

    The graph is run twice, at the primes and at the example sizes. A model that limits a size in a way export
    does not see gets small primes, one that divides a size gets primes times numbers with many divisors; the
    last resort is the example sizes alone.

    Args:
        module: The normalised graph; its placeholders still carry export's fake tensors.
        example: The example leaves, ``[batch, ...]`` or ``[...]``.
        batched: For each placeholder, whether its dimension 0 is the batch.
        sizes: The primes of the symbols.

    Returns:
        The table, one of the example's sizes alone (the same one if no other sizes could be told), and the batch size as
        (value in the table, value in the example).

    Raises:
        CaptureError: a shape depends on the data in a way that export does not tell.
    """
    symbolic = [node.meta["val"].shape for node in module.graph.find_nodes(op="placeholder")]
    concrete = [tuple(leaf.shape) for leaf in example]
    try:
        small = replay(module, example, concrete, _at_example(symbolic, concrete))
    except REFUSALS as error:
        raise CaptureError(
            f"the shapes inside the model cannot be told without data: {type(error).__name__}: {error}"
        ) from error
    shapes, found = concrete, _described(small, small)
    for scaled in _attempts(sizes):
        try:
            scaled_shapes = [scaled.shape(shape) for shape in symbolic]
            found = _described(replay(module, example, scaled_shapes, scaled), small)
        except REFUSALS:
            continue
        shapes = scaled_shapes
        break
    pairs = zip(symbolic, shapes, concrete, batched, strict=True)
    batch = next(((now[0], then[0]) for expr, now, then, flag in pairs if flag and static(expr[0]) is None), (1, 1))
    at_example = _described(small, small)
    if shapes is concrete:  # no other sizes could be told
        return at_example, at_example, batch
    return {node: found.get(node) for node in module.graph.nodes}, at_example, batch


def _described(large: dict[fx.Node, Any], small: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
    return {node: describe(large[node], value) for node, value in small.items()}


def _attempts(sizes: Sizes) -> Iterator[Sizes]:
    yield sizes
    largest = max(sizes.primes.values(), default=0)
    for small in _SMALL:
        others = iter(small)
        yield Sizes({symbol: p if p == largest else next(others, p) for symbol, p in sizes.primes.items()})
    for factor in _FACTORS:
        yield Sizes({symbol: prime * factor for symbol, prime in sizes.primes.items()})


def replay(
    module: fx.GraphModule, leaves: Sequence[Tensor], shapes: Sequence[tuple[int, ...]], sizes: Sizes
) -> dict[fx.Node, Any]:
    """Run the graph on meta tensors of these shapes, dtypes as ``leaves`` (``[...]``); return every node's value.

    Where an operator's result depends on data, or it has no meta kernel, export's own fake value stands in.
    """
    env: dict[fx.Node, Any] = {}
    inputs = iter(zip(leaves, shapes, strict=True))
    with torch.no_grad():
        for node in module.graph.nodes:
            if node.op == "placeholder":
                leaf, shape = next(inputs)
                env[node] = torch.empty(shape, dtype=leaf.dtype, device="meta")
            elif node.op == "get_attr":
                env[node] = _meta(fetch(module, str(node.target)))
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
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    target: Callable[..., Any] = node.target  # type: ignore[assignment]
    value = node.meta.get("val")
    if any(tag in getattr(target, "tags", ()) for tag in _DYNAMIC) and free_unbacked_symbols(value):
        return _stand_in(value, sizes)
    args: Any = fx.map_arg(node.args, env.__getitem__)
    kwargs: Any = fx.map_arg(node.kwargs, env.__getitem__)
    if AUTOCAST in node.meta and isinstance(value, Tensor) and value.is_floating_point():
        args, kwargs = pytree.tree_map_only(Tensor, partial(_cast, value.dtype), (args, kwargs))
        return _cast(value.dtype, target(*args, **kwargs))  # autocast knows nothing of the meta device
    if target in _KEEPS_SHAPE or (target in _ARITHMETIC and _alike(args[0], args[1])):
        return args[0]
    if target is aten.linear.default and args[0].shape[-1] == args[1].shape[-1] and args[1].ndim == 2:
        return args[0].new_empty((*args[0].shape[:-1], args[1].shape[0]))
    try:
        return target(*args, **kwargs)
    except NotImplementedError:  # an op that export can trace need not run on the meta device
        if value is None:
            raise
        return _stand_in(value, sizes)


def _cast(dtype: torch.dtype, value: Tensor) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def _alike(a: Any, b: Any) -> bool:
    """Say whether arithmetic on two operands gives a tensor like the first one."""
    if not isinstance(a, Tensor) or not a.is_floating_point():
        return False
    return isinstance(b, (int, float)) or (isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape)


def _stand_in(value: Any, sizes: Sizes) -> Any:
    if isinstance(value, (list, tuple)):
        return [_stand_in(item, sizes) for item in value]
    if isinstance(value, Tensor):
        return torch.empty(sizes.shape(value.shape), dtype=value.dtype, device="meta")
    return sizes.of(value) if isinstance(value, torch.SymInt) else value


def _meta(value: Any) -> Any:
    return value.detach().to("meta") if isinstance(value, Tensor) else value


def describe(large: Any, small: Any) -> Any:
    """Return what a node is, from its value at the primes and at the example: see `infer`.

    Raises:
        ValueError: there are more parts at one than at the other, as of a batch that is split into pieces of a fixed size.
    """
    if isinstance(large, Tensor):
        example = tuple(small.shape) if isinstance(small, Tensor) else tuple(large.shape)
        return TensorInfo(tuple(large.shape), example, large.dtype)
    if isinstance(large, (list, tuple)):
        smalls = small if isinstance(small, (list, tuple)) else large
        return [describe(a, b) for a, b in zip(large, smalls, strict=True)]
    return large if isinstance(large, int) and not isinstance(large, bool) else None

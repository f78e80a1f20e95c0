"""What can be told of a stored graph without running it: what it writes to, and how large its whole numbers can become."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from fxprune._base import untrusted
from fxprune._base.errors import PlanError
from fxprune.ops.checked import is_unchecked, reads_number, takes_constants, takes_number, writes
from fxprune.ops.registry import may_alias

#: Bits of a whole number. Sizes have 63, and a model multiplies a few; products of products have more digits than there is memory.
_MOST_BITS = 1 << 14

_SIZE_BITS, _FLOAT_BITS = 63, 1024

_STORABLE = (
    "bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64 complex128 "
    "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz"
)
_DTYPES = frozenset(getattr(torch, name) for name in _STORABLE.split() if hasattr(torch, name))
_DEVICES = ("cpu", "cuda", "hpu", "mps", "mtia", "npu", "xla", "xpu")


def check_conditions(graph: fx.Graph, where: str) -> None:
    """Makes sure that a graph writes only to values that it made itself, and that its whole numbers and constants are bounded.

    Raises:
        PlanError: they are not; names the node.
    """
    bits: dict[fx.Node, int] = {}
    for node in graph.nodes:
        here = f"{where}: {node.name!r:.80}"
        _check_constants(node, here)
        bits[node] = _bits(node, bits, here)
        if bits[node] > _MOST_BITS:
            raise PlanError(f"{here}: expected sizes, got a product that may have {bits[node]} bits")
        if writes(node.target) and (origin := _origin(node.args[0] if node.args else None)) is not None:
            raise PlanError(f"{here}: expected to write into a value of the graph's own, got {origin!s:.80}")
        if is_unchecked(node.target) and any(not _is_tensor_of_model(value) for value in node.all_input_nodes):
            raise PlanError(f"{here}: {node.target} takes tensors of the model alone")
        if reads_number(node.target) and not all(_as_value(node, user) for user in node.users):
            raise PlanError(
                f"{here}: expected a number that is read of a tensor to be a value, of which no size is made"
            )
        if takes_constants(node.target) and any(isinstance(value, fx.Node) for value in _numbers(node)):
            raise PlanError(f"{here}: {node.target} takes constant numbers alone")


def _check_constants(node: fx.Node, where: str) -> None:
    for value in _flat((node.args, node.kwargs)):
        if isinstance(value, torch.dtype) and value not in _DTYPES:
            raise untrusted.refusal(value, where, "a dtype of plain numbers")
        if isinstance(value, torch.layout) and value is not torch.strided:
            raise untrusted.refusal(value, where, "a dense layout")
        if isinstance(value, torch.device) and value.type not in _DEVICES:
            raise untrusted.refusal(value, where, f"one of the devices {', '.join(_DEVICES)}")


def _bits(node: fx.Node, bits: dict[fx.Node, int], where: str) -> int:
    """Returns how many bits a whole number can have at most, whatever the sizes of the inputs are."""
    if node.op != "call_function" or isinstance(node.target, OpOverload):
        return _SIZE_BITS
    name = getattr(node.target, "__name__", "")
    if name in ("pow", "lshift"):
        return _power_bits(name, node.args, bits, where)
    return sum(_bits_of(value, bits) for value in _flat(node.args)) + 1


def _power_bits(name: str, args: Any, bits: dict[fx.Node, int], where: str) -> int:
    if len(args) != 2 or isinstance(args[1], bool) or not isinstance(args[1], (int, float)) or abs(args[1]) > 64:
        raise untrusted.refusal(args[1:], where, "a constant exponent of at most 64")
    base = _bits_of(args[0], bits)
    return base + 64 if name == "lshift" else base * max(1, int(abs(args[1])))


def _bits_of(value: Any, bits: dict[fx.Node, int]) -> int:
    if isinstance(value, fx.Node):
        return bits[value]
    return _FLOAT_BITS if isinstance(value, float) else value.bit_length() if isinstance(value, int) else 0


def _origin(value: Any) -> Any:
    """Returns the input or tensor of the model that a value may share its memory with; None if the graph made it anew."""
    while isinstance(value, fx.Node):
        if value.op != "call_function":
            return value
        if not (writes(value.target) or may_alias(value.target) or not isinstance(value.target, OpOverload)):
            return None
        value = value.args[0] if value.args else None
    return "nothing that it made"


def _numbers(node: fx.Node) -> Iterator[Any]:
    """Yields the arguments that are no tensors."""
    declared: Any = node.target
    kinds = {a.name: str(a.type) for a in declared._schema.arguments}
    yield from (value for name, value in _named(node).items() if kinds[name] != "Tensor")


def _named(node: fx.Node) -> dict[str, Any]:
    """Returns the arguments of an operator by their names."""
    declared: Any = node.target
    return {**dict(zip((a.name for a in declared._schema.arguments), node.args, strict=False)), **node.kwargs}


def _as_value(number: fx.Node, user: fx.Node) -> bool:
    """Returns whether a node takes a number as a value, wherever it takes it."""
    if not isinstance(user.target, OpOverload):
        return user.op == "output"
    places = [name for name, value in _named(user).items() if number in _flat(value)]
    return all(takes_number(user.target, name) for name in places)


def _is_tensor_of_model(node: fx.Node) -> bool:
    origin = _origin(node)
    return isinstance(origin, fx.Node) and origin.op == "get_attr"


def _flat(value: Any) -> Iterator[Any]:
    """Yields what containers and slices hold."""
    if isinstance(value, slice):
        value = (value.start, value.stop, value.step)
    if isinstance(value, dict):
        value = tuple(value.values())
    if not isinstance(value, (list, tuple)):
        yield value
        return
    for entry in value:
        yield from _flat(entry)

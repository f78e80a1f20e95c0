"""The rule tables: for each ATen op, how it couples axes, how it is sliced, and how its masked twin runs.

A rule is a pure function; an op's entries stand together in its family's file. An op with no entry is frozen.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

if TYPE_CHECKING:
    from fxprune.algebra.axes import Axes
    from fxprune.ops.slicer import Edit, Slicer
    from fxprune.ops.tracer import Tracer
    from fxprune.ops.twin import Twin

Couple = Callable[["Tracer", fx.Node, SimpleNamespace], "Axes | list[Axes] | None"]
Slice = Callable[["Slicer", fx.Node, SimpleNamespace], "Edit"]
TwinRule = Callable[["Twin", fx.Node, SimpleNamespace], Any]


@dataclass(frozen=True, slots=True)
class Rule:
    """What is known about one op.

    ``couple`` returns the axes of the result and relates those of the operands; ``slice`` returns the arguments that
    change when channels go; ``twin`` runs the op on full-size values as if the removed channels were not there.
    ``positions`` are the operands that may hold positions of an axis that shrinks, ``carries`` says that the result is
    made of the first operand's values, as they are.
    """

    couple: Couple
    slice: Slice | None = None
    twin: TwinRule | None = None
    positions: tuple[str, ...] = ()
    carries: bool = False


_RULES: dict[Any, Rule] = {}
_LATER: dict[str, Rule] = {}  # of ops that nobody has registered yet, by name


def register(
    names: Iterable[str], couple: Couple, slice: Slice | None = None, twin: TwinRule | None = None, *,
    positions: tuple[str, ...] = (), carries: bool = False,
) -> None:  # fmt: skip
    """Enters one rule for several ops (``"conv2d.default"``, of the ``aten`` namespace unless another is named).

    An overload that this torch does not have is passed over; one of another library's namespace counts as soon as
    that library is there.

    Raises:
        KeyError: an op has a rule already.
    """
    rule = Rule(couple, slice, twin, positions, carries)
    for name in names:
        namespace, _, rest = name.rpartition("::")
        packet, _, overload = rest.partition(".")
        try:
            op = getattr(getattr(getattr(torch.ops, namespace or "aten"), packet), overload or "default")
        except (AttributeError, RuntimeError):
            if namespace:
                _LATER[f"{namespace}.{packet}.{overload or 'default'}"] = rule
            continue
        if op in _RULES:
            raise KeyError(f"{op} has a rule already")
        _RULES[op] = rule


def mutates(node: fx.Node) -> bool:
    """Returns whether a node writes to one of its operands (fx calls dropout impure as well)."""
    return isinstance(node.target, torch._ops.OpOverload) and bool(node.target._schema.is_mutable)


def rule_of(target: Any) -> Rule | None:
    """Returns the rule of an op: its own entry, or that of pointwise ops where PyTorch tags it so and it is pure."""
    if target in _RULES:
        return _RULES[target]
    if str(target) in _LATER:
        return _LATER[str(target)]
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return None
    return _RULES["pointwise"] if torch.Tag.pointwise in target.tags else None


def register_pointwise(couple: Couple) -> None:
    """Enters the rule for every op that PyTorch tags as pointwise."""
    if "pointwise" in _RULES:
        raise KeyError("pointwise ops have a rule already")
    _RULES["pointwise"] = Rule(couple)


def registered() -> dict[Any, Rule]:
    """Returns a copy of the table."""
    return dict(_RULES)


@functools.lru_cache(maxsize=4096)
def _schema(target: Any) -> tuple[tuple[str, Any, bool], ...]:
    return tuple((a.name, a.default_value if a.has_default_value() else None, a.kwarg_only)
                 for a in target._schema.arguments)  # fmt: skip


def bind(node: fx.Node) -> SimpleNamespace:
    """Returns the node's arguments by schema name, defaults filled in (``a.input``, ``a.self``, ``a.dim``...)."""
    values: dict[str, Any] = {}
    for position, (name, default, kwarg_only) in enumerate(_schema(node.target)):
        if not kwarg_only and position < len(node.args):
            values[name] = node.args[position]
        else:
            values[name] = node.kwargs.get(name, default)
    return SimpleNamespace(**values)

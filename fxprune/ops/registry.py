"""The table of declarations: from an op to its rule. An op without one is frozen."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload, OpOverloadPacket

from fxprune._base.errors import RuleError, raised_as
from fxprune.capturing.normalize.edit import schema_args
from fxprune.ops.rule import Rule, check_rule, check_schema

#: The name under which the rule of all ops stands that PyTorch tags as pointwise and that have none of their own.
POINTWISE = "pointwise"

_RULES: dict[Any, Rule] = {}
_LATER: dict[str, Rule] = {}  # of ops that nobody has registered yet, by name


def register_rule(ops: str | OpOverload | Iterable[str | OpOverload], rule: Rule) -> None:
    """Declares one or several ops; from then on they are coupled, sliced and run as the rule says.

    Args:
        ops: names such as ``"conv2d.default"``, of the ``aten`` namespace unless another is named
            (``"mylib::blend.default"``), or overloads such as ``torch.ops.mylib.blend.default``; several names in a string are
            parted by spaces. An overload that this torch does not have is passed over; an op of another library counts as
            soon as that library is there.
        rule: the declaration.

    Raises:
        RuleError: an op has a rule already, or the declaration lacks something (see `Rule`); names the op.
    """
    _fill()
    for name in _named(ops):
        check_rule(name, rule)
        if name == POINTWISE:
            _enter(name, name, rule)
            continue
        namespace, _, rest = name.rpartition("::")
        packet, _, overload = rest.partition(".")
        target = _find(namespace or "aten", packet, overload or "default")
        if target is not None:
            check_schema(name, target, rule)
            _enter(target, name, rule)
        elif namespace:
            _LATER[f"{namespace}.{packet}.{overload or 'default'}"] = rule


def _named(ops: Any) -> list[str]:
    several = isinstance(ops, Iterable) and not isinstance(ops, OpOverloadPacket)
    listed = ops.split() if isinstance(ops, str) else list(ops) if several else [ops]
    if strange := [op for op in listed if not isinstance(op, (str, OpOverload))]:
        expected = "expected names such as 'mylib::blend.default', or overloads such as torch.ops.mylib.blend.default"
        raise RuleError(f"{strange[0]}: {expected}, got {type(strange[0]).__name__}")
    return [op.name() if isinstance(op, OpOverload) else op for op in listed]


def _enter(target: Any, name: str, rule: Rule) -> None:
    if target in _RULES:
        raise RuleError(f"{name}: it has a rule already; an op is declared once")
    _RULES[target] = rule


def _find(namespace: str, packet: str, overload: str) -> Any:
    try:
        return getattr(getattr(getattr(torch.ops, namespace), packet), overload)
    except (AttributeError, RuntimeError):
        return None


@functools.cache
def _fill() -> None:
    """Enters fxprune's own rules, the first time that anybody asks."""
    importlib.import_module("fxprune.ops.families")


def rule_of(target: Any) -> Rule | None:
    """Returns the rule of an op: its own entry, or that of pointwise ops where PyTorch tags it so and it is pure."""
    _fill()
    if target in _RULES:
        return _RULES[target]
    if str(target) in _LATER:
        check_schema(str(target), target, _LATER[str(target)])
        _RULES[target] = _LATER.pop(str(target))
        return _RULES[target]
    if not isinstance(target, OpOverload) or target._schema.is_mutable:
        return None
    return _RULES[POINTWISE] if torch.Tag.pointwise in target.tags else None


def rule_at(node: Any) -> Rule | None:
    """Returns the rule of the op that a value is a call of, if it is one."""
    return rule_of(node.target) if isinstance(node, fx.Node) and node.op == "call_function" else None


def is_kind(node: Any, *kinds: str) -> bool:
    """Returns whether a value is a call of an op of one of these kinds."""
    rule = rule_at(node)
    return rule is not None and rule.kind in kinds


def conducts(node: fx.Node) -> bool:
    """Returns whether a node hands its first operand on unchanged in an evaluation."""
    rule = rule_at(node)
    return rule is not None and rule.conducts


def may_alias(target: Any) -> bool:
    """Returns whether an op's result may share the memory of its first operand."""
    rule, schema = rule_of(target), getattr(target, "_schema", None)
    return (rule is not None and rule.view) or (schema is not None and any(r.alias_info for r in schema.returns))


def registered() -> dict[Any, Rule]:
    """Returns a copy of the table."""
    _fill()
    return dict(_RULES)


def bind(node: fx.Node) -> SimpleNamespace:
    """Returns the node's arguments by schema name, defaults filled in (``a.input``, ``a.self``, ``a.dim``...)."""
    return SimpleNamespace(**schema_args(node))


def blamed(node: fx.Node, part: str, a: SimpleNamespace) -> AbstractContextManager[None]:
    """Raises what a part of a rule fails with as a `RuleError` that names the op, the part, and the arguments it was given."""
    given = ", ".join(f"a.{name}" for name in vars(a))
    return raised_as(RuleError, f"{node.target}: {part}, given {given}")

"""The table of declarations: from an op to its rule. An op without one is frozen."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
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
_LATER: dict[str, Rule] = {}  # of ops that nobody has registered yet, by the name that PyTorch would print

_NAME = re.compile(
    r"(?:torch\.ops\.)?(?:(?P<namespace>\w+)(?:::|\.(?=\w+\.\w+$)))?(?P<packet>\w+)(?:\.(?P<overload>\w+))?"
)
_SEVERAL_VERSIONS = ContextVar("several versions of torch", default=False)


def register_rule(ops: str | OpOverload | Iterable[str | OpOverload], rule: Rule) -> None:
    """Declares one or several ops, all or none; from then on they are coupled, sliced and run as the rule says.

    Args:
        ops: names such as ``"conv2d.default"``, of the ``aten`` namespace unless another is named
            (``"mylib::blend.default"``, or ``"mylib.blend.default"`` as PyTorch prints it), or overloads such as
            ``torch.ops.mylib.blend.default``; several names in a string are parted by spaces. An op of another library counts
            as soon as that library is there.
        rule: the declaration.

    Raises:
        RuleError: an op has a rule already, there is no such op, or the declaration lacks something (see `Rule`); names it.
    """
    _fill()
    checked = [found for name in _named(ops) if (found := _checked(name, rule)) is not None]
    for table, key in checked:
        table[key] = rule


@contextmanager
def for_several_versions() -> Iterator[None]:
    """Lets rules be registered for ``aten`` ops that this torch does not have."""
    token = _SEVERAL_VERSIONS.set(True)
    try:
        yield
    finally:
        _SEVERAL_VERSIONS.reset(token)


def _named(ops: Any) -> list[str]:
    several = isinstance(ops, Iterable) and not isinstance(ops, OpOverloadPacket)
    listed = ops.split() if isinstance(ops, str) else list(ops) if several else [ops]
    if strange := [op for op in listed or [ops] if not isinstance(op, OpOverload) and not _is_name(op)]:
        expected = "expected names such as 'mylib::blend.default', or overloads such as torch.ops.mylib.blend.default"
        raise RuleError(f"{strange[0]!s:.80}: {expected}, got {type(strange[0]).__name__}")
    return [op.name() if isinstance(op, OpOverload) else op for op in listed]


def _is_name(op: Any) -> bool:
    return isinstance(op, str) and _NAME.fullmatch(op) is not None


def _checked(name: str, rule: Rule) -> tuple[dict[Any, Rule], Any] | None:
    """Returns where a rule is to stand, and under what; None for an op of another version of torch."""
    check_rule(name, rule)
    namespace, packet, overload = (part or "" for part in _NAME.fullmatch(name).groups())  # type: ignore[union-attr]
    namespace, overload = namespace or "aten", overload or "default"
    printed = f"{namespace}.{packet}.{overload}"
    target = POINTWISE if name == POINTWISE else _find(namespace, packet, overload)
    if target in _RULES or printed in _LATER:
        raise RuleError(f"{name}: it has a rule already; an op is declared once")
    if target is not None:
        if target != POINTWISE:
            check_schema(name, target, rule)
        return _RULES, target
    if namespace != "aten":
        return _LATER, printed
    if _SEVERAL_VERSIONS.get():
        return None
    raise RuleError(f"{name}: torch {torch.__version__} has no such aten op{_near(packet)}")


def _near(packet: str) -> str:
    """Returns the end of a sentence: the overloads of an op, or ops whose names are near."""
    if hasattr(torch.ops.aten, packet):
        return f"; there is {packet} as {', '.join(getattr(torch.ops.aten, packet).overloads())}"
    near = get_close_matches(packet, {str(op).split(".")[1] for op in _RULES if isinstance(op, OpOverload)})
    return f"; did you mean {', '.join(near)}?" if near else ""


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


def waiting_near(target: Any) -> str:
    """Returns the name of an op that a rule waits for and that is near this one's, of the same library; empty if none is."""
    library = str(target).partition(".")[0]
    names = [name for name in _LATER if name.partition(".")[0] == library]
    return next(iter(get_close_matches(str(target), names, n=1, cutoff=0.8)), "")


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

"""The sizes and kinds of numbers that a stored graph stands for, as JSON data.

A term is a number, the name of a size, or an array of the name of a function and its operands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxprune._base import untrusted
from fxprune._base.errors import PlanError
from fxprune.capturing.limits import FUNCTIONS, KINDS, Limits, Term, sizes_in

#: How deep terms may lie within each other, and how many conditions there may be.
_DEEPEST, _MOST = 64, 4096


def describe_limits(limits: Limits) -> dict[str, Any]:
    """Returns JSON data for limits."""
    return {
        "names": list(limits.names),
        "shapes": [[_write(term) for term in shape] for shape in limits.shapes],
        "least": [list(entry) for entry in limits.least],
        "conditions": [_write(term) for term in limits.conditions],
        **({"kinds": list(limits.kinds)} if limits.kinds else {}),
    }


def read_limits(data: Any, inputs: int, where: str) -> Limits:
    """Returns the limits that ``describe_limits`` was given.

    Args:
        data: the JSON data.
        inputs: how many inputs the graph has.
        where: where they stand, for messages.

    Raises:
        PlanError: the data are damaged.
    """
    found = untrusted.record(data, where, ("names", "shapes", "least", "conditions"), ("kinds",))
    names = untrusted.texts(found["names"], f"{where}: names")
    shapes = tuple(
        untrusted.sequence_of(shape, f"{where}: shapes", _read)
        for shape in untrusted.sequence(found["shapes"], f"{where}: shapes")
    )
    if not len(names) == len(shapes) == inputs:
        raise PlanError(f"{where}: expected names and shapes of {inputs} inputs, got {len(names)} and {len(shapes)}")
    rows = untrusted.sequence(found["least"], f"{where}: least")
    least = tuple(untrusted.row_of(row, f"{where}: least", untrusted.string, untrusted.integer) for row in rows)
    conditions = untrusted.sequence_of(found["conditions"], f"{where}: conditions", _read)
    if len(conditions) > _MOST:
        raise PlanError(f"{where}: conditions: expected at most {_MOST}, got {len(conditions)}")
    known = {term for shape in shapes for term in shape if isinstance(term, str)}
    for term in (*(term for shape in shapes for term in shape), *conditions, *(name for name, _ in least)):
        if unknown := [size for size in sizes_in(term) if size not in known]:
            raise PlanError(f"{where}: there is no size {unknown[0]!r:.80}")
    return Limits(names, shapes, least, conditions, _read_kinds(found, inputs, f"{where}: kinds"))


def _read_kinds(found: Mapping[str, Any], inputs: int, where: str) -> tuple[str, ...]:
    if "kinds" not in found:
        return ()
    kinds = untrusted.texts(found["kinds"], where)
    for kind in kinds:
        untrusted.one_of(KINDS, kind, where)
    if len(kinds) != inputs:
        raise PlanError(f"{where}: expected those of {inputs} inputs, got {len(kinds)}")
    return kinds


def _write(term: Term) -> Any:
    return [term[0], *map(_write, term[1:])] if isinstance(term, tuple) else term


def _read(value: Any, where: str, depth: int = 0) -> Term:
    if isinstance(value, str):
        return untrusted.string(value, where)
    if not isinstance(value, list):
        return untrusted.number(value, where)
    if depth > _DEEPEST or not value:
        raise untrusted.refusal(value, where, "a term")
    name = untrusted.one_of(FUNCTIONS, value[0], where)
    fewest, most, *_ = FUNCTIONS[name]
    if not fewest <= len(value) - 1 <= most:
        raise untrusted.refusal(value, where, f"a term of {fewest} to {most} operands")
    return (name, *(_read(part, where, depth + 1) for part in value[1:]))

"""The arguments of a graph's nodes as JSON data, and back.

Text, whole numbers, finite floats, true, false, null and arrays stand for themselves; everything else is an object of one
key that says what it is: ``{"node": "relu"}``, ``{"float": "inf"}``, ``{"tuple": [1, 2]}``, ``{"dtype": "float32"}``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxprune._base import untrusted
from fxprune._base.errors import PlanError
from fxprune._base.given import LARGEST, is_text

#: How deep containers may lie within each other.
DEPTH = 32

_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_DEVICE = re.compile(r"[a-z]{1,20}(:\d{1,4})?")


class Unstorable(Exception):  # noqa: N818 - it is caught where a model is saved, and no user's error
    """Something has no JSON form; says what and why."""


@dataclass(frozen=True, slots=True)
class Opaque:
    """Stands for a default argument without a JSON form (a function, an enum): it can be left out, and not be given.

    Attributes:
        text: what it was.
    """

    text: str

    def __repr__(self) -> str:
        return f"<{self.text}>"


def to_json(value: Any) -> Any:
    """Returns JSON data for an argument.

    Raises:
        Unstorable: the argument has none.
    """
    kind = type(value)
    if value is None or kind is bool or (kind is str and is_text(value)):
        return value
    if kind is int and -LARGEST - 1 <= value <= LARGEST:
        return value
    if isinstance(value, float):  # NumPy's as well
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, list):
        return [to_json(entry) for entry in value]
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return {"tuple": [to_json(entry) for entry in value]}
    for name, (cls, write) in _WRITERS.items():
        if isinstance(value, cls):
            return {name: write(value)}
    raise Unstorable(f"a {kind.__module__}.{kind.__qualname__} has no place in a file")


def from_json(value: Any, where: str, nodes: Mapping[str, fx.Node], depth: int = 0) -> Any:
    """Returns the argument that ``to_json`` was given.

    Args:
        value: the JSON data.
        where: where they stand, for messages.
        nodes: the nodes so far, by name.
        depth: how many containers lie around it.

    Raises:
        PlanError: the data are damaged.
    """
    if depth > DEPTH:
        raise PlanError(f"{where}: nested too deeply")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return untrusted.string(value, where)
    if isinstance(value, (int, float)):
        return untrusted.number(value, where)
    if isinstance(value, list):
        return [from_json(entry, where, nodes, depth + 1) for entry in value]
    found = untrusted.mapping(value, where)
    name = next(iter(found), "")
    if len(found) != 1 or name not in _NAMES:
        raise untrusted.refusal(value, where, f"a value, or an object of one of {', '.join(_NAMES)}")
    entry = found[name]
    if name == "node":
        return _named(nodes)(entry, where)
    if name in _CONTAINERS:
        return _container(name, entry, where, nodes, depth + 1)
    return _READERS[name](entry, where)


def plain(value: Any, where: str) -> Any:
    """Returns an argument in which no node may occur."""
    return from_json(value, where, {})


def dtype(value: Any, where: str) -> torch.dtype:
    """Returns the dtype of a name such as ``float32``."""
    found: torch.dtype = _READERS["dtype"](value, where)
    return found


def name_of(value: object) -> str:
    """Returns the name of one of torch's constants without ``torch.``."""
    return str(value).removeprefix("torch.")


def _write_dict(value: Mapping[Any, Any]) -> dict[str, Any]:
    if any(type(key) is not str or not is_text(key) for key in value):
        raise Unstorable("a dict among the arguments has keys that are no text")
    return {key: to_json(entry) for key, entry in value.items()}


def _container(name: str, entry: Any, where: str, nodes: Mapping[str, fx.Node], depth: int) -> Any:
    if name == "dict":
        items = untrusted.mapping(entry, where).items()
        return {key: from_json(value, where, nodes, depth) for key, value in items}
    if name == "slice":
        untrusted.exactly(3, entry, where, "start, stop and step")
    parts = [from_json(value, where, nodes, depth) for value in untrusted.sequence(entry, where)]
    return tuple(parts) if name == "tuple" else slice(*parts)


def _complex(value: Any, where: str) -> complex:
    parts = [plain(part, where) for part in untrusted.sequence(value, where)]
    if len(parts) != 2 or any(type(part) is not float for part in parts):
        raise untrusted.refusal(value, where, "a real and an imaginary part")
    return complex(*parts)


def _device(value: Any, where: str) -> torch.device:
    name = untrusted.string(value, where)
    with suppress(RuntimeError):
        if _DEVICE.fullmatch(name):
            return torch.device(name)
    raise untrusted.refusal(name, where, "a device such as 'cuda:0'")


def _named(table: Mapping[str, Any]) -> Callable[[Any, str], Any]:
    def read(value: Any, where: str) -> Any:
        name = untrusted.string(value, where)
        if name not in table:
            raise PlanError(f"{where}: there is no {name!r:.80}")
        return table[name]

    return read


#: Kinds of torch's constants, which have names.
_CONSTANTS = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}

_WRITERS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "node": (fx.Node, lambda node: node.name),
    "slice": (slice, lambda cut: [to_json(part) for part in (cut.start, cut.stop, cut.step)]),
    "dict": (Mapping, _write_dict),
    "complex": (complex, lambda number: [to_json(number.real), to_json(number.imag)]),
    "device": (torch.device, str),
    "opaque": (Opaque, lambda opaque: opaque.text),
    **{name: (kind, name_of) for name, kind in _CONSTANTS.items()},
}

_READERS: dict[str, Callable[[Any, str], Any]] = {
    "float": _named(_FLOATS),
    "complex": _complex,
    **{
        name: _named({name_of(value): value for value in vars(torch).values() if isinstance(value, kind)})
        for name, kind in _CONSTANTS.items()
    },
    "device": _device,
    "opaque": lambda value, where: Opaque(untrusted.string(value, where)),
}

#: What may hold nodes.
_CONTAINERS = ("tuple", "slice", "dict")

_NAMES = (*_READERS, "node", *_CONTAINERS)

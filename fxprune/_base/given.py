"""What users hand in, checked where it comes in: text, seeds, functions, objects with parts, and what makes them."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Container, Mapping
from typing import Any

from fxprune._base.errors import FxpruneError

#: The largest integer that is kept anywhere: what int64 holds.
LARGEST = 2**63 - 1


def is_text(value: Any) -> bool:
    """Returns whether a value is text that can be written out and read again."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def seed_of(value: Any) -> int:
    """Returns a seed as a plain int.

    Raises:
        TypeError: it is no int, nor anything that stands for one.
        ValueError: int64 does not hold it.
    """
    try:
        seed = int(operator.index(value))
    except TypeError:
        raise TypeError(f"seed: expected an int, got {value!r:.80}") from None
    if not -LARGEST - 1 <= seed <= LARGEST:
        raise ValueError(f"seed: expected an int from -2**63 to 2**63 - 1, got one of {seed.bit_length()} bits")
    return seed


def is_whole(value: Any, least: int) -> bool:
    """Returns whether a value is an int of at least so much that can be kept."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST


def is_share(value: Any) -> bool:
    """Returns whether a value is a number from 0 to below 1."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1


def check_takes(error: type[Exception], what: str, function: Any, *arguments: str) -> None:
    """Makes sure that a function can be called with so many arguments; their names are for the message."""
    wanted = f"{what}: expected a function of ({', '.join(arguments)})"
    if not callable(function):
        raise error(f"{wanted}, got {function!r:.80}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # one written in C does not tell
        return
    try:
        signature.bind(*arguments)
    except TypeError as reason:
        raise error(f"{wanted}, got one of {signature}: {reason}") from None


def check_factory(error: type[FxpruneError], what: str, name: Any, factory: Any, known: Container[str]) -> None:
    """Makes sure that what makes a scorer, or a recovery, can be registered under a name that is not among the known."""
    if not is_text(name) or name in ("", "auto"):
        raise error(f"a {what} is registered under a name, got {name!r:.80}")
    if name in known:
        raise error(f"a {what} named {name!r} is registered already")
    check_takes(error, f"{what} {name!r}: what makes it, such as its class", factory)


def check_parts(error: type[FxpruneError], expected: str, value: Any, parts: Mapping[str, Any]) -> None:
    """Makes sure that an object has certain parts, and a name among them.

    Args:
        error: raised where it has not.
        expected: the beginning of the message, such as ``"expected a runtime"``.
        value: what came.
        parts: the type of each part; ``tuple`` stands for strings in a tuple.
    """
    if inspect.isclass(value):
        raise error(f"{expected}, got the class {value.__name__}: give {value.__name__}()")
    if lacks := [part for part in parts if not hasattr(value, part)]:
        raise error(f"{expected} with {', '.join(parts)}; {value!r:.80} lacks {', '.join(lacks)}")
    for part, kind in parts.items():
        found = getattr(value, part)
        if not isinstance(found, kind) or (kind is tuple and not all(isinstance(item, str) for item in found)):
            wanted = "strings in a tuple" if kind is tuple else f"a {kind.__name__.lower()}"
            raise error(f"{expected}; {value!r:.80}: {part}: expected {wanted}, got {found!r:.80}")
    if not is_text(value.name) or not value.name:
        raise error(f"{expected}; {value!r:.80}: name: expected text, got {value.name!r:.80}")

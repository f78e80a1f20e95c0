"""Reads JSON that anyone may have written: every value is checked, every complaint says where it stands.

Nothing is imported, evaluated or constructed by name; out come plain dicts, lists, strings and numbers.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from fxprune._base.errors import PlanError
from fxprune._base.given import LARGEST, is_text

T = TypeVar("T")

#: Returns a value as what it must be, once it is checked; takes the value, and where it stands, for messages.
Reader = Callable[[Any, str], T]

#: The largest JSON file that is read, in bytes.
LARGEST_FILE = 1 << 27


def read_file(path: Path) -> bytes:
    """Returns the content of a file.

    Raises:
        PlanError: there is no such file, or it is too large to be one of ours.
    """
    if not path.is_file():
        raise missing(path)
    if path.stat().st_size > LARGEST_FILE:
        raise PlanError(f"{path.name}: expected at most {LARGEST_FILE} bytes, got {path.stat().st_size}")
    return path.read_bytes()


def missing(path: Path) -> PlanError:
    """Returns the error for a file that is not in its directory."""
    return PlanError(f"{path.parent}: {path.name} is missing: expected a directory that fxprune.save wrote")


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turns whatever goes wrong while something is made of checked values into a PlanError.

    Libraries refuse strange values (a convolution of no groups, a shape beyond int64) each in their own way.
    """
    try:
        yield
    except PlanError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise PlanError(f"{where}: it cannot be made ({type(error).__name__}: {reason:.200})") from error


def check_schema(value: Any, what: str, known: Sequence[int]) -> int:
    """Returns the version of a format, if it is one that this fxprune reads.

    Args:
        value: what the file says.
        what: the file's name.
        known: the versions that are read, ascending.

    Raises:
        PlanError: it is another one; a newer one asks for an upgrade.
    """
    schema = integer(value, f"{what}: schema")
    if schema > known[-1]:
        raise PlanError(
            f"{what}: format {schema} is not one that this fxprune reads (up to {known[-1]}): upgrade fxprune"
        )
    if schema not in known:
        raise PlanError(f"{what}: schema: expected one of {', '.join(map(str, known))}, got {schema}")
    return schema


def decode(text: str | bytes, what: str) -> dict[str, Any]:
    """Returns the JSON object in ``text``.

    Args:
        text: the JSON, as text or UTF-8 bytes.
        what: its name in messages, e.g. ``plan.json``.

    Raises:
        PlanError: not JSON, not an object, a key twice, or a number that is none.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
        raise PlanError(f"{what}: it is not valid JSON ({error}): is the file whole?") from error
    return mapping(value, what)


def record(value: Any, where: str, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Any]:
    """Returns a JSON object that has all the required keys and none besides the optional ones."""
    found = mapping(value, where)
    needed, allowed = set(required), set(optional)
    if missing := sorted(needed - found.keys()):
        raise PlanError(f"{where}: {', '.join(missing)} missing: is the file whole?")
    if unknown := sorted(found.keys() - needed - allowed):
        raise PlanError(f"{where}: unknown entries {reprlib.repr(unknown)}")
    return found


def fields_of(value: Any, where: str, readers: Mapping[str, Reader[Any]]) -> dict[str, Any]:
    """Returns a JSON object that has just these keys, each value read by its reader."""
    found = record(value, where, readers)
    return {key: read(found[key], f"{where}: {key}") for key, read in readers.items()}


def mapping(value: Any, where: str) -> dict[str, Any]:
    """Returns a JSON object; its keys are text."""
    if not isinstance(value, dict):
        raise refusal(value, where, "an object")
    return {string(key, f"{where}: a key"): entry for key, entry in value.items()}


def mapping_of(value: Any, where: str, read: Reader[T]) -> dict[str, T]:
    """Returns a JSON object whose values are all read by ``read``."""
    return {key: read(entry, f"{where}[{reprlib.repr(key)}]") for key, entry in mapping(value, where).items()}


def sequence(value: Any, where: str) -> list[Any]:
    """Returns a JSON array."""
    if not isinstance(value, list):
        raise refusal(value, where, "an array")
    return value


def sequence_of(value: Any, where: str, read: Reader[T]) -> tuple[T, ...]:
    """Returns a JSON array whose entries are all read by ``read``."""
    return tuple(read(entry, f"{where}[{index}]") for index, entry in enumerate(sequence(value, where)))


def row_of(value: Any, where: str, *readers: Reader[Any]) -> tuple[Any, ...]:
    """Returns a JSON array of as many entries as readers, each read by its own."""
    row = exactly(len(readers), value, where, f"{len(readers)} entries")
    return tuple(read(entry, where) for read, entry in zip(readers, row, strict=True))


def exactly(count: int, value: Any, where: str, expected: str) -> list[Any]:
    """Returns a JSON array of so many entries; ``expected`` says which."""
    if len(row := sequence(value, where)) != count:
        raise refusal(value, where, expected)
    return row


def maybe(read: Reader[T]) -> Reader[T | None]:
    """Returns a reader of null, and of what ``read`` reads."""
    return lambda value, where: None if value is None else read(value, where)


def texts(value: Any, where: str) -> tuple[str, ...]:
    """Returns a JSON array of text."""
    return sequence_of(value, where, string)


def integers(value: Any, where: str) -> tuple[int, ...]:
    """Returns a JSON array of integers from 0."""
    return sequence_of(value, where, integer)


def integer(value: Any, where: str) -> int:
    """Returns an integer from 0 to ``LARGEST``."""
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise refusal(value, where, "a whole number from 0")
    return int(value)


def signed(value: Any, where: str) -> int:
    """Returns an integer that int64 holds."""
    if type(value) is not int or not -LARGEST - 1 <= value <= LARGEST:
        raise refusal(value, where, "a whole number")
    return int(value)


def number(value: Any, where: str) -> int | float:
    """Returns a finite number."""
    if type(value) is int:
        return signed(value, where)
    if type(value) is not float or not math.isfinite(value):
        raise refusal(value, where, "a number")
    return float(value)


def real(value: Any, where: str) -> float:
    """Returns a finite number as a float."""
    return float(number(value, where))


def string(value: Any, where: str) -> str:
    """Returns text that can be written out again."""
    if not is_text(value):
        raise refusal(value, where, "text")
    return str(value)


def one_of(names: Iterable[str], value: Any, where: str) -> str:
    """Returns text that is one of some names."""
    if (name := string(value, where)) not in names:
        raise refusal(name, where, f"one of {', '.join(names)}")
    return name


def boolean(value: Any, where: str) -> bool:
    """Returns true or false."""
    if not isinstance(value, bool):
        raise refusal(value, where, "true or false")
    return value


def refusal(value: Any, where: str, expected: str) -> PlanError:
    """Returns the error for a value that is not what was expected."""
    return PlanError(f"{where}: expected {expected}, got {reprlib.repr(value)}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")

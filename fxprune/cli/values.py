"""Values on the command line: amounts, ``key=value`` pairs, and things named ``package.module:name``."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from fxprune.cli.errors import InputError, OptionError, suggestion

#: The backends that are there from the start, in words: their own room imports torch.
BACKENDS = "eager, compiled, onnxruntime, torch.export, aotinductor, openvino, executorch, ncnn or litert"

Number = TypeVar("Number", int, float)

_SCALES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
_WORDS = {"true": True, "false": False, "none": None, "null": None}


def amount(text: str) -> float | int:
    """Reads a share (``0.5``, ``50%``: a float) or an absolute number (``1200000``, ``1.2M``: an int)."""
    found = re.fullmatch(r"(-?\d+(?:\.\d*)?|-?\.\d+)\s*([%KMGBT]?)", text.strip(), re.IGNORECASE)
    if found is None:
        raise click.BadParameter(f"expected a share such as 0.5 or 50%, or a number such as 1.2M, got {text!r}")
    number, scale = found[1], found[2].upper()
    if scale == "%":
        return float(number) / 100
    if scale == "" and "." in number:
        return float(number)
    return round(float(number) * _SCALES[scale])


def portion(text: str) -> float:
    """Reads a share in (0, 1]: ``0.5`` or ``50%``."""
    number = text.strip()
    try:
        found = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        found = 0.0
    if not 0 < found <= 1:
        raise click.BadParameter(f"expected a share in (0, 1], such as 0.5 or 50%, got {text!r}")
    return found


class Place(click.Path):
    """A file or directory; the shell completes it. An empty name, as of an unset variable, would be the working directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns the name."""
        if not value:
            self.fail("expected a name, got an empty one", param, ctx)
        return super().convert(value, param, ctx)


class Words(click.Choice[str]):
    """Some words, of which an option takes one; the nearest is named where another one is given."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """Returns click's message, and what was meant."""
        return super().get_invalid_choice_message(value, ctx).removesuffix(".") + suggestion(str(value), self.choices)


def pair(text: str) -> tuple[str, Any]:
    """Reads ``key=value``; the value is a Python literal where it reads as one, else text."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise click.BadParameter(f"expected key=value, got {text!r}")
    return key.strip(), literal(value)


def floats(text: str) -> tuple[float, ...]:
    """Reads numbers with commas between them."""
    return _row(text, float, "numbers such as 0.5,0.5,0.5")


def whole_numbers(text: str) -> tuple[int, ...]:
    """Reads whole numbers with commas between them."""
    return _row(text, int, "whole numbers such as 1,8,32")


def counts(text: str) -> tuple[int, ...]:
    """Reads numbers of at least 1 with commas between them, each once."""
    found = tuple(dict.fromkeys(whole_numbers(text)))
    if min(found) < 1:
        raise click.BadParameter(f"expected numbers of at least 1, got {text!r}")
    return found


def _row(text: str, read: Callable[[str], Number], expected: str) -> tuple[Number, ...]:
    try:
        return tuple(read(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"expected {expected}, got {text!r}") from None


def literal(text: str) -> Any:
    """Returns a number, list, truth value or None where the text reads as one, else the text."""
    if text.strip().lower() in _WORDS:
        return _WORDS[text.strip().lower()]
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def is_reference(text: str) -> bool:
    """Returns whether a text has the form ``package.module:name``."""
    return re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*", text) is not None


def fetch(reference: str, what: str) -> Any:
    """Imports what ``package.module:name`` stands for; modules beside the user's shell are found as well.

    Raises:
        InputError: there is no such module or name, or the module fails; says which.
    """
    module_name, _, path = reference.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise OptionError(
            f"{what} {reference!r}: no module named {error.name!r}; expected package.module:name, importable from here"
        ) from error
    except Exception as error:
        raise InputError(
            f"{what} {reference!r}: importing {module_name} raised {type(error).__name__}: {error}"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            names = [name for name in dir(found) if not name.startswith("_")]
            raise OptionError(f"{what} {reference!r}: {module_name} has no {part!r}{suggestion(part, names)}")
        found = getattr(found, part)
    return found


def kind_of(path_or_name: str, suffixes: Iterable[str]) -> str:
    """Returns the suffix of a file's name if it is among some, else ``""``."""
    return next((each for each in suffixes if path_or_name.lower().endswith(each)), "")


def ratios(texts: tuple[str, ...]) -> float | dict[str, float] | None:
    """Reads shares: one for all, or by pattern; None for none.

    Raises:
        OptionError: one is no number.
    """
    table: dict[str, float] = {}
    for text in texts:
        pattern, equals, share = text.rpartition("=")
        try:
            table[pattern if equals else "default"] = amount(share) if share.endswith("%") else float(share)
        except ValueError:
            raise OptionError(f"--ratio {text}: expected SHARE or PATTERN=SHARE, such as 'layer*.conv1=0.4'") from None
    return table["default"] if set(table) == {"default"} else table or None

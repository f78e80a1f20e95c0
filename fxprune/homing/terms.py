"""Integers that remember where they come from: an attribute of a module or the size of a tensor, through arithmetic.

A `Tagged` is an ``int``, and torch takes it for one. What is computed of it knows its term: ``heads * 64`` is a product.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from fxprune.algebra.axes import Axis


@dataclass(frozen=True, slots=True)
class Place:
    """Where an integer stands in a model.

    Attributes:
        module: the dotted name of the module; empty for the model itself.
        steps: the attribute, then attributes of objects and positions or keys in collections.
        value: what stands there.
    """

    module: str
    steps: tuple[str | int, ...]
    value: int

    @property
    def key(self) -> Key:
        """Which place it is, whatever stands there."""
        return self.module, self.steps

    def __str__(self) -> str:
        """Returns it as Python would reach it: ``layers.0.config.heads``, ``norm.normalized_shape[0]``."""
        parts = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.steps]
        return (self.module + "".join(parts)).removeprefix(".")


@dataclass(frozen=True, slots=True)
class SizeOf:
    """A size of a tensor in the forward.

    Attributes:
        axis: what the dimension is in the graph; None where the graph has no such tensor.
        value: the size.
    """

    axis: Axis | None
    value: int


@dataclass(frozen=True, slots=True)
class Computed:
    """What arithmetic makes of terms."""

    function: Callable[..., Any]
    operands: tuple[Term, ...]


#: A place without what stands there.
Key: TypeAlias = tuple[str, tuple[str | int, ...]]
Leaf: TypeAlias = "Place | SizeOf"
Term: TypeAlias = "Place | SizeOf | Computed | int"


def leaves(term: Term) -> Iterator[Leaf]:
    """Yields the places and sizes that a term is made of."""
    if isinstance(term, Computed):
        for operand in term.operands:
            yield from leaves(operand)
    elif not isinstance(term, int):
        yield term


def rewritten(term: Term, places: Mapping[Key, Term]) -> Term:
    """Returns a term in which some places are what other terms say."""
    if isinstance(term, Computed):
        return Computed(term.function, tuple(rewritten(operand, places) for operand in term.operands))
    return places.get(term.key, term) if isinstance(term, Place) else term


def evaluate(term: Term, value: Callable[[Leaf], int]) -> int | None:
    """Returns what a term comes to with other values of its leaves; None where that is undefined, such as a division by 0."""
    if isinstance(term, int):
        return term
    if not isinstance(term, Computed):
        return value(term)
    operands = [evaluate(operand, value) for operand in term.operands]
    if any(operand is None for operand in operands):
        return None
    try:
        found: int = term.function(*operands)
    except (ArithmeticError, ValueError):
        return None
    return found


#: Who is told of two terms that Python compared and found equal.
_NOTICED: list[Callable[[Term, Term], None]] = []
#: Who is told of a term that was made a float, as by ``head_dim**-0.5``: what is computed of that is a plain number.
_FLOATED: list[Callable[[Term], None]] = []


@contextmanager
def noticed(equal: Callable[[Term, Term], None]) -> Iterator[None]:
    """Has a function told of each two terms that the code compares and finds equal."""
    _NOTICED.append(equal)
    try:
        yield
    finally:
        _NOTICED.remove(equal)


@contextmanager
def floated(seen: Callable[[Term], None]) -> Iterator[None]:
    """Has a function told of each term that the code makes a float."""
    _FLOATED.append(seen)
    try:
        yield
    finally:
        _FLOATED.remove(seen)


class Tagged(int):
    """An integer with a term."""

    term: Term

    def __new__(cls, value: int, term: Term) -> Tagged:  # noqa: D102
        self = int.__new__(cls, value)
        self.term = term
        return self

    def __reduce__(self) -> Any:
        return int, (int(self),)

    def __deepcopy__(self, memo: Any) -> Tagged:
        return self

    def __copy__(self) -> Tagged:
        return self

    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        equal = int(self) == (int(other) if isinstance(other, int) else other)
        if equal and isinstance(other, int):
            for notice in _NOTICED:
                notice(self.term, term_of(other))
        return equal

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __float__(self) -> float:
        for seen in _FLOATED:
            seen(self.term)
        return float(int(self))

    def __neg__(self) -> Tagged:
        return Tagged(-int(self), Computed(operator.neg, (self.term,)))

    def __truediv__(self, other: Any) -> Any:
        return _quotient(self, other) if isinstance(other, int) else float(self) / other

    def __rtruediv__(self, other: Any) -> Any:
        return _quotient(other, self) if isinstance(other, int) else other / float(self)


class Quotient(float):
    """What ``/`` makes of two integers: ``math.floor(a / b)`` knows its term again.

    ``int(a / b)`` Python makes a plain integer, which is noticed as what the term is equal to.
    """

    operands: tuple[Term, Term]

    def __new__(cls, a: int, b: int) -> Quotient:  # noqa: D102
        self = float.__new__(cls, int(a) / int(b))
        self.operands = term_of(a), term_of(b)
        return self

    def __reduce__(self) -> Any:
        return float, (float(self),)

    def __deepcopy__(self, memo: Any) -> float:
        return float(self)

    def __trunc__(self) -> Tagged:
        return Tagged(math.trunc(float(self)), self._whole())

    def __int__(self) -> int:
        found = math.trunc(float(self))
        for notice in _NOTICED:
            notice(self._whole(), found)
        return found

    def _whole(self) -> Computed:
        return Computed(operator.floordiv if self >= 0 else _truncated, self.operands)

    def __floor__(self) -> Tagged:
        return Tagged(math.floor(float(self)), Computed(operator.floordiv, self.operands))

    def __ceil__(self) -> Tagged:
        return Tagged(math.ceil(float(self)), Computed(_rounded_up, self.operands))


def _truncated(a: int, b: int) -> int:
    return a // b if (a < 0) == (b < 0) else -(-a // b)


def _rounded_up(a: int, b: int) -> int:
    return -(-a // b)


def _quotient(a: int, b: int) -> Quotient:
    return Quotient(a, b)


def term_of(value: int) -> Term:
    """Returns the term of an integer; of a plain one itself."""
    return value.term if isinstance(value, Tagged) else int(value)


def _carried(name: str) -> None:
    function = getattr(operator, name)

    def forward(self: Tagged, other: Any) -> Any:
        if isinstance(other, float):
            return function(float(self), other)
        if not isinstance(other, int):
            return NotImplemented
        return _tagged(function, self, other)

    def backward(self: Tagged, other: Any) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        return _tagged(function, other, self)

    setattr(Tagged, f"__{name}__", forward)
    setattr(Tagged, f"__r{name}__", backward)


def _tagged(function: Callable[..., Any], a: int, b: int) -> Any:
    found = function(int(a), int(b))
    return Tagged(found, Computed(function, (term_of(a), term_of(b)))) if type(found) is int else found


for _name in ("add", "sub", "mul", "floordiv", "mod", "pow"):
    _carried(_name)

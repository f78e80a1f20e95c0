"""What sizes and kinds of numbers a captured graph stands for: every call is held to them, for the graph would compute something else.

Plain data and plain loops: limits are pickled and stored, checked at each call, and traced by `torch.compile`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fxprune._base.errors import CallError, ShapeError
from fxprune._base.moved import filled_in

#: A number, the name of a size such as ``x.shape[2]``, or the name of a function and its operands.
Term: TypeAlias = Any

#: Functions of one number, each called as Python's math calls it.
UNARY = ("sqrt", "exp", "log", "log2", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh")

#: Up to here numbers are exact as floats as well.
_EXACT = 2**53


def _power(base: Any, exponent: Any) -> Any:
    """Returns a power: of whole numbers a whole one where that is no large one, otherwise a float."""
    if isinstance(base, torch.SymInt):
        return base**exponent
    power = math.pow(base, exponent)
    whole = isinstance(base, int) and isinstance(exponent, int) and exponent >= 0 and abs(power) < _EXACT
    return int(power) if whole else power


def _rounded(value: Any, digits: int = 0) -> Any:
    """Returns a number rounded as Python does, a whole one without ``digits``."""
    if isinstance(value, (torch.SymInt, torch.SymFloat)):
        return round(value, digits) if digits else round(value)
    return round(float(value), digits) if digits else round(value)


#: What terms are made of: name -> (least and most operands, function, sign between the operands in messages).
FUNCTIONS: Mapping[str, tuple[int, int, Callable[..., Any], str]] = {
    "add": (2, 64, lambda *parts: sum(parts), " + "),
    "mul": (2, 64, lambda *parts: math.prod(parts), "*"),
    "floordiv": (2, 2, operator.floordiv, "//"),
    "truediv": (2, 2, operator.truediv, "/"),
    "mod": (2, 2, operator.mod, " % "),
    "max": (2, 64, max, ", "),
    "min": (2, 64, min, ", "),
    "eq": (2, 2, operator.eq, " == "),
    "ne": (2, 2, operator.ne, " != "),
    "lt": (2, 2, operator.lt, " < "),
    "le": (2, 2, operator.le, " <= "),
    "gt": (2, 2, operator.gt, " > "),
    "ge": (2, 2, operator.ge, " >= "),
    "and": (2, 64, lambda *parts: all(parts), " and "),
    "or": (2, 64, lambda *parts: any(parts), " or "),
    "not": (1, 1, operator.not_, "not "),
    "ceil": (1, 1, math.ceil, ""),
    "floor": (1, 1, math.floor, ""),
    "trunc": (1, 1, math.trunc, ""),
    "round": (1, 2, _rounded, ", "),
    "pow": (2, 2, _power, "**"),
    "abs": (1, 1, abs, ""),
    "lshift": (2, 2, lambda value, by: value * _power(2, by), " << "),
    "rshift": (2, 2, lambda value, by: value // _power(2, by), " >> "),
    "bitand": (2, 2, operator.and_, " & "),
    "bitor": (2, 2, operator.or_, " | "),
    "bitxor": (2, 2, operator.xor, " ^ "),
    **{name: (1, 1, getattr(math, name), "") for name in UNARY},
}

#: What kinds of numbers a graph tells apart: within one, precision is free.
KINDS = ("bool", "integer", "floating", "complex")
_IN_WORDS = {
    "bool": "booleans",
    "integer": "integers (any integer dtype)",
    "floating": "floating-point numbers (any precision)",
    "complex": "complex numbers",
}

_WAY_OUT = (
    "if the model itself takes this size, compile again with it: alone, or beside the other in the calibration data, which "
    "frees what no weight, recurrent layer or Python code of the model's fixes"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """The sizes, and the kinds of numbers, that a graph was captured for.

    Attributes:
        names: of the inputs, as the user knows them: ``x``, ``batch['mask']``, ``images[1]``.
        shapes: of each input, a term for each dimension: a number where the size is fixed.
        least: the smallest value of each free size, by its name.
        conditions: terms that must hold: what operators need, and what Python asked of the sizes.
        kinds: of each input's numbers, one of `KINDS`; empty in what an earlier version made.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[Term, ...], ...]
    least: tuple[tuple[str, int], ...] = ()
    conditions: tuple[Term, ...] = ()
    kinds: tuple[str, ...] = ()

    __setstate__ = filled_in

    def check(self, tensors: Sequence[Tensor]) -> None:
        """Refuses inputs, ``[...]`` each, of other sizes or kinds.

        Raises:
            CallError: names the argument, and says what kind of numbers was expected.
            ShapeError: names the argument and the dimension, and says what was expected.
        """
        for name, kind, tensor in zip(self.names, self.kinds, tensors, strict=bool(self.kinds)):
            if kind_of(tensor.dtype) != kind:
                raise _of_another_kind(name, kind, tensor)
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return  # sizes are tensors there
        sizes = self.sizes(tensors)
        for name, shape, tensor in zip(self.names, self.shapes, tensors, strict=True):
            for dim, term in enumerate(shape):
                if not _holds(tensor.shape[dim] == value_of(term, sizes)):
                    raise _refused(name, dim, text_of(term), tensor)
        for size, least in self.least:
            if not _holds(sizes[size] >= least):
                raise _unmet(f"{size} >= {least}", (size,), sizes)
        for condition in self.conditions:
            if not met(condition, sizes):
                raise _unmet(text_of(condition), sizes_in(condition), sizes)

    def sizes(self, tensors: Sequence[Tensor]) -> dict[str, int]:
        """Returns the free sizes of a call with these tensors, ``[...]`` each, by their names.

        Raises:
            ShapeError: one has another number of dimensions.
        """
        sizes: dict[str, int] = {}
        for name, shape, tensor in zip(self.names, self.shapes, tensors, strict=True):
            if tensor.dim() != len(shape):
                raise ShapeError(
                    f"{name}: expected {len(shape)} dimensions, got {tensor.dim()} (shape {list(tensor.shape)})"
                )
            for term, size in zip(shape, tensor.shape, strict=True):
                if isinstance(term, str):
                    sizes.setdefault(term, size)
        return sizes

    def allows(self, sizes: Mapping[str, int]) -> bool:
        """Returns whether a call may have these free sizes."""
        return all(sizes[name] >= least for name, least in self.least) and all(met(c, sizes) for c in self.conditions)

    def others(
        self, sizes: Mapping[str, int], batch: str | None, candidates: Callable[[int], Iterable[int]]
    ) -> dict[str, int]:
        """Returns other free sizes than a call's, the first candidate of each; those of the batch and what has no other stay."""
        found = dict(sizes)
        for name, size in sizes.items():
            if name != batch:
                allowed = (other for other in candidates(size) if other > 1 and self.allows({**found, name: other}))
                found[name] = next(allowed, size)
        return found


def kind_of(dtype: torch.dtype) -> str:
    """Returns the kind of numbers that a dtype holds, one of `KINDS`."""
    return _KIND_OF.get(dtype, "integer")


_KIND_OF = {
    dtype: "bool" if dtype is torch.bool else "complex" if dtype.is_complex else "floating"
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype) and (dtype is torch.bool or dtype.is_complex or dtype.is_floating_point)
}


def near(size: int) -> Iterable[int]:
    """Returns sizes that are other than one, the nearest first."""
    return size - 1, size + 1, size // 2, size * 2, size - 2, size + 2, size + 32


def of_other_length(size: int) -> Iterable[int]:
    """Returns sizes of fewer digits than one that has several, else of more; first those that most things divide."""
    below = 10 ** (len(str(size)) - 1)
    others = range(below // 2, below) if size >= 10 else range(10, 20)
    return sorted(others, key=lambda other: other & -other, reverse=True)


def value_of(term: Term, sizes: Mapping[str, Any]) -> Any:
    """Returns what a term comes to at some sizes; NaN, which equals nothing, where it comes to nothing."""
    if isinstance(term, str):
        return sizes[term]
    if not isinstance(term, tuple):
        return term
    try:
        return FUNCTIONS[term[0]][2](*(value_of(part, sizes) for part in term[1:]))
    except (ArithmeticError, ValueError, TypeError):  # a division by zero, what no float holds, bits of a float
        return nan


def met(condition: Term, sizes: Mapping[str, Any]) -> bool:
    """Returns whether a condition holds at some sizes; one that cannot be told there does not."""
    return _holds(value_of(condition, sizes))


def text_of(term: Term) -> str:
    """Returns a term as Python would write it."""
    if not isinstance(term, tuple):
        return str(term)
    name, *parts = term
    written = [f"({text_of(part)})" if isinstance(part, tuple) else text_of(part) for part in parts]
    if len(parts) == 1 or FUNCTIONS[name][3] == ", ":
        return f"{name}({', '.join(map(text_of, parts))})"
    return FUNCTIONS[name][3].join(written)


def sizes_in(term: Term) -> tuple[str, ...]:
    """Returns the names of the sizes in a term, each once."""
    if isinstance(term, str):
        return (term,)
    parts = term[1:] if isinstance(term, tuple) else ()
    return tuple(dict.fromkeys(size for part in parts for size in sizes_in(part)))


def _holds(value: Any) -> bool:
    """Returns whether a condition holds; one on sizes that only the data tell is not asked."""
    if isinstance(value, torch.SymBool):
        from torch.fx.experimental.symbolic_shapes import guard_or_true

        return bool(guard_or_true(value))
    return bool(value)


def _refused(name: str, dim: int, expected: str, tensor: Tensor) -> ShapeError:
    return ShapeError(
        f"{name}: expected {expected} in dimension {dim}, got {tensor.shape[dim]} (shape {list(tensor.shape)}): the model was "
        f"captured for that size. What helps: {_WAY_OUT}"
    )


def _of_another_kind(name: str, expected: str, tensor: Tensor) -> CallError:
    return CallError(
        f"{name}: expected {_IN_WORDS[expected]}, got {tensor.dtype}: the model was captured with those, and may do "
        "something else with others. What helps: convert it, or compile again with calibration data of this kind"
    )


def _unmet(condition: str, names: Sequence[str], sizes: Mapping[str, int]) -> ShapeError:
    got = ", ".join(f"{name} = {sizes[name]}" for name in names)
    return ShapeError(
        f"expected {condition}, got {got}: the model was captured where that holds. What helps: {_WAY_OUT}"
    )

"""What an exported graph takes for granted of the sizes of its inputs: its symbols, their bounds, and what Python asked."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx.experimental.sym_node import SymNode

from fxprune.capturing.limits import UNARY, Limits, Term, kind_of, met, sizes_in
from fxprune.capturing.sizes import static

if TYPE_CHECKING:
    import sympy

#: Where export asks how numbers lie in memory, which decides how they are moved and not what they are.
_LAYOUT = ("_prims_common",)
#: Operators ask in passing for much that they do not need; what they need is short.
_LONGEST = 24

_NAMES = {
    "Add": "add",
    "Mul": "mul",
    "FloorDiv": "floordiv",
    "CleanDiv": "floordiv",
    "IntTrueDiv": "truediv",
    "FloatTrueDiv": "truediv",
    "Mod": "mod",
    "PythonMod": "mod",
    "Max": "max",
    "Min": "min",
    "Equality": "eq",
    "Unequality": "ne",
    "StrictLessThan": "lt",
    "LessThan": "le",
    "StrictGreaterThan": "gt",
    "GreaterThan": "ge",
    "And": "and",
    "Or": "or",
    "Not": "not",
    "CeilToInt": "ceil",
    "ceiling": "ceil",
    "FloorToInt": "floor",
    "floor": "floor",
    "TruncToInt": "trunc",
    "TruncToFloat": "trunc",
    "RoundToInt": "round",
    "RoundDecimal": "round",
    "Pow": "pow",
    "PowByNatural": "pow",
    "FloatPow": "pow",
    "Abs": "abs",
    "LShift": "lshift",
    "RShift": "rshift",
    "BitwiseFn_bitwise_and": "bitand",
    "BitwiseFn_bitwise_or": "bitor",
    "BitwiseFn_bitwise_xor": "bitxor",
    **{f"OpaqueUnaryFn_{name}": name for name in UNARY},
}


#: A term over symbolic sizes, as torch holds it, and what Python was told that it is.
Answer: TypeAlias = tuple[Any, bool | int | float]


class TooInvolvedError(Exception):
    """Sizes depend on each other in a way that takes export for ever to reason about."""


@contextmanager
def asking(most: int | None = None) -> Iterator[list[Answer]]:
    """Notes each ``if`` on a size in the model's own code, and each number that Python makes of one.

    What follows from bounds leaves no guard in the program, and a guard does not tell whether the model asked or an operator.
    Texts of sizes are those of the numbers that they are in the example.

    Args:
        most: operations in one condition; beyond that `TooInvolvedError` is raised.
    """
    asked: list[Answer] = []

    def noting(method: Callable[..., Any]) -> Callable[..., Any]:
        def noted(self: Any, *args: Any) -> Any:
            node = getattr(self, "node", self)
            if isinstance(self, torch.SymBool) and most is not None and node.expr.count_ops() > most:
                raise TooInvolvedError(f"a condition on sizes has more than {most} operations")
            found = method(self, *args)
            if not _within_operator():
                asked.append((node, found))
            return found

        return noted

    with ExitStack() as undo:
        for kind, name in ((torch.SymBool, "__bool__"), (SymNode, "guard_int"), (SymNode, "guard_float")):
            undo.enter_context(_replaced(kind, name, noting(getattr(kind, name))))
        for shown in (torch.SymInt, torch.SymFloat):
            undo.enter_context(_replaced(shown, "__repr__", _as_number(shown.__repr__)))
        yield asked


@contextmanager
def _replaced(kind: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    before = getattr(kind, name)
    setattr(kind, name, method)
    try:
        yield
    finally:
        setattr(kind, name, before)


def _as_number(shown: Callable[[Any], str]) -> Callable[[Any], str]:
    """Returns a ``__repr__`` that shows a size to all but torch itself as the number that it is in the example."""

    def shown_as_number(size: Any) -> str:
        hint = getattr(size.node, "hint", None)
        at_home = sys._getframe(1).f_globals.get("__name__", "").partition(".")[0] == "torch"
        return shown(size) if at_home or not isinstance(hint, (int, float)) else repr(hint)

    return shown_as_number


def _within_operator() -> bool:
    """Returns whether an operator works out its result: it will do so again at each call, whatever the sizes."""
    frames = traceback.walk_stack(sys._getframe(2))
    return any(frame.f_code.co_name == "__torch_dispatch__" for frame, _ in frames)


def read_limits(
    program: ExportedProgram, names: Sequence[str], example: Sequence[Tensor], asked: Sequence[Answer]
) -> Limits:
    """Returns what a program takes for granted of the sizes of its inputs, and of the kinds of their numbers.

    Args:
        program: the exported program.
        names: of the tensors among its inputs, as the user knows them.
        example: these tensors, ``[...]`` each.
        asked: what Python asked of the sizes, and what it was told.
    """
    shapes = _shapes(program)
    reading = _Reading()
    terms = tuple(
        tuple(reading.dim(size, f"{name}.shape[{dim}]", int(leaf.shape[dim])) for dim, size in enumerate(shape))
        for name, shape, leaf in zip(names, shapes, example, strict=True)
    )
    for expr in _needed(program, shapes):
        reading.require(expr)
    for node, answer in asked:
        reading.keep(node.expr, answer)
    kinds = tuple(kind_of(leaf.dtype) for leaf in example)
    return replace(reading.limits(tuple(names), terms, program), kinds=kinds)


def _shapes(program: ExportedProgram) -> list[Sequence[Any]]:
    """Returns the symbolic shapes of the tensors that a program is called with."""
    given = set(program.graph_signature.user_inputs)
    nodes = [node for node in program.graph.find_nodes(op="placeholder") if node.name in given]
    return [node.meta["val"].shape for node in nodes if isinstance(node.meta.get("val"), Tensor)]


def _needed(program: ExportedProgram, shapes: Sequence[Sequence[Any]]) -> Iterator[sympy.Basic]:
    """Yields the conditions that operators asked for and found true."""
    sizes = [size for shape in shapes for size in shape if static(size) is None]
    environment: Any = getattr(sizes[0].node, "shape_env", None) if sizes else None
    for guard in getattr(environment, "guards", ()):
        place = getattr(getattr(guard, "sloc", None), "framework_loc", None)
        if not any(part in str(place) for part in _LAYOUT):
            yield environment.replace(guard.expr)


class _Reading:
    """Turns sympy's expressions into terms over the names of dimensions."""

    def __init__(self) -> None:
        self.named: dict[sympy.Symbol, Term] = {}
        self.example: dict[str, int] = {}
        self.conditions: dict[Term, None] = {}

    def dim(self, size: Any, name: str, example: int) -> Term:
        """Returns the term of an input's dimension; a symbol is called after the first dimension that it is the size of."""
        if (known := static(size)) is not None:
            return known
        expr = size.node.expr
        unknown = [symbol for symbol in expr.free_symbols if symbol not in self.named]
        if not unknown:
            return self.term(expr) or example
        symbol = unknown[0]
        factor, offset = expr.coeff(symbol), expr.subs(symbol, 0)
        if len(unknown) > 1 or expr != factor * symbol + offset or not (factor.is_Integer and offset.is_Integer):
            return example
        self.example[name] = example
        self.named[symbol] = name if expr == symbol else _unmultiplied(name, int(factor), int(offset))
        if factor != 1:
            self.conditions[("eq", ("mod", _plus(name, -int(offset)), int(factor)), 0)] = None
        return name

    def keep(self, expr: Any, answer: bool | int | float) -> None:
        """Makes it a condition that an expression is what the model was told; what cannot be asked again stays as it was."""
        if not self._speaks_of_sizes(expr):
            return
        term = self.term(~expr if answer is False else expr)
        condition = term if isinstance(answer, bool) else ("eq", term, answer)
        if term is not None and met(condition, self.example):
            self.conditions[condition] = None
            return
        for name in {size for symbol in expr.free_symbols for size in sizes_in(self.named[symbol])}:
            self.conditions[("eq", name, self.example[name])] = None

    def require(self, expr: Any) -> None:
        """Makes what an operator asked for a condition, if it says anything of the free sizes and is short."""
        kind = type(expr).__name__
        if not self._speaks_of_sizes(expr) or expr.count_ops() > _LONGEST or kind == "Unequality":
            return  # unequal sizes are an operator's other way to the same result
        if (term := self.term(expr)) is not None:
            self.conditions[term] = None

    def _speaks_of_sizes(self, expr: Any) -> bool:
        free: set[Any] = getattr(expr, "free_symbols", set())
        return bool(free) and free <= self.named.keys()

    def term(self, expr: Any) -> Term | None:
        """Returns the term of an expression, None if it has none."""
        try:
            return self._term(expr)
        except KeyError:
            return None

    def _term(self, expr: Any) -> Term:
        if expr.is_Integer:
            return int(expr)
        if expr.is_Number:
            return float(expr)
        if expr.is_Symbol:
            return self.named[expr]
        parts = [self._term(part) for part in expr.args]
        kind = type(expr).__name__
        if kind in ("ToFloat", "Identity"):
            return parts[0]
        if _NAMES[kind] == "pow" and type(parts[1]) is int and 2 <= parts[1] <= 8:
            return ("mul", *[parts[0]] * parts[1])
        return (_NAMES[kind], *parts)

    def limits(self, names: tuple[str, ...], shapes: tuple[tuple[Term, ...], ...], program: ExportedProgram) -> Limits:
        """Returns it all; what does not hold at the example itself is no condition of this graph."""
        for symbol, bounds in program.range_constraints.items():
            if symbol in self.named and bounds.upper.is_Integer:
                self.conditions[("le", self.named[symbol], int(bounds.upper))] = None
        holding = tuple(term for term in self.conditions if met(term, self.example))
        return Limits(names, shapes, tuple((name, 2) for name in self.example), holding)


def _plus(term: Term, number: int) -> Term:
    return ("add", term, number) if number else term


def _unmultiplied(name: str, factor: int, offset: int) -> Term:
    shifted = _plus(name, -offset)
    return ("floordiv", shifted, factor) if factor != 1 else shifted

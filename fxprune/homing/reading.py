"""One run of the original in which every size that its forward names is written down, with where the size comes from."""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from fxprune._base.modes import lent
from fxprune.algebra.axes import Axis, is_labelled, size_of
from fxprune.data.calls import Call
from fxprune.homing.counting import Dimensions, Dims, numbered
from fxprune.homing.matching import Values
from fxprune.homing.naming import COMPUTES, MOVES, NAMED, RESHAPES, Named
from fxprune.homing.places import tagged
from fxprune.homing.terms import Computed, Key, SizeOf, Tagged, Term, evaluate, floated, noticed

_SHAPE = Tensor.shape.__get__  # type: ignore[attr-defined]
_ELSEWHERE = tuple(f"{folder}{os.sep}" for folder in (Path(__file__).parents[1], Path(torch.__file__).parent))


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the forward of a module.

    Attributes:
        module: its dotted name.
        kind: its class.
        function: which of its functions.
        file: where the source is.
        number: of the line there.
    """

    module: str
    kind: str
    function: str
    file: str
    number: int

    def __str__(self) -> str:
        """Returns it for a message: ``layers.0 (Attention.forward, model.py:12)``."""
        return f"{self.module or 'the model'} ({self.kind}.{self.function}, {Path(self.file).name}:{self.number})"


@dataclass(frozen=True, slots=True)
class Reading:
    """A size that a line of the forward names.

    Attributes:
        term: where the number comes from.
        named: what the number is: the size of an axis, how many coordinates lie before a place in it (below 0: behind it), how many
            equal parts it is cut into, of what it is a multiple; or 0, the difference of two that the code compares and finds equal, or of a number that
            it computes with and what that was, or the rest of a division that it finds to leave none.
        axis: of a tensor.
        size: of the axis at the example.
        line: that names it.
        call: the function that it names it to.
    """

    term: Term
    named: Named
    axis: Axis
    size: int
    line: Line
    call: str


@dataclass(frozen=True, slots=True, eq=False)
class Readings:
    """What the original's forward says of its sizes.

    Attributes:
        sizes: that it names.
        whole: axes of which the forward makes all, such as a table of positions or of slopes by head, while the graph cuts them.
        shared: axes for which it makes one value, such as a first state of zeros, while in the graph each reader takes its part.
        made: where widths are to be uniform, what modules keep of the settings that they were made of.
    """

    sizes: tuple[Reading, ...]
    whole: tuple[Axis, ...] = ()
    shared: tuple[tuple[Axis, ...], ...] = ()
    made: Mapping[Key, Term] = field(default_factory=dict)


def read_sizes(
    model: nn.Module,
    call: Call,
    values: Values,
    dimensions: Dimensions,
    way: Callable[..., Any] = nn.Module.__call__,
    unused: Set[str] = frozenset(),
) -> tuple[list[Reading], list[tuple[Axis, ...]]]:
    """Returns what one call of the model, in evaluation mode, names of sizes; of tensors that the graph has too.

    And axes that it has in one dimension of a tensor, as of queries and values in ``view(b, n, 3, heads, -1)``: of one length.

    Args:
        model: run with tagged integers, and as it was afterwards.
        call: ``(args, kwargs)`` of the example.
        values: of the graph, from a run with the same tensors.
        dimensions: their axes.
        way: calls the model, ``way(model, *args, **kwargs)``.
        unused: parameters that the graph does not have: what they are computed with stays, whatever becomes of it.
    """
    reader = _Reader(model, values, dimensions, unused)
    with (
        torch.no_grad(),
        lent(model, call),
        tagged(model),
        _watched(model, reader),
        noticed(reader.compared),
        floated(reader.counted),
        reader,
    ):
        way(model, *call[0], **call[1])
    return list(dict.fromkeys(reader.readings)), list(dict.fromkeys(reader.shared))


@contextmanager
def _watched(model: nn.Module, reader: _Reader) -> Iterator[None]:
    """Keeps the reader told of which module's forward runs."""
    paths = {id(module): path for path, module in model.named_modules()}

    def before(module: nn.Module, args: Any) -> None:
        reader.stack.append(paths.get(id(module), reader.stack[-1]))

    def after(module: nn.Module, args: Any, output: Any) -> None:
        reader.stack.pop()

    modules = nn.modules.module
    handles = [
        modules.register_module_forward_pre_hook(before),
        modules.register_module_forward_hook(after, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Reader(TorchFunctionMode):
    def __init__(
        self, model: nn.Module, values: Values, dimensions: Dimensions, unused: Set[str] = frozenset()
    ) -> None:
        super().__init__()
        self.unused = {id(tensor) for name, tensor in model.named_parameters() if name in unused}
        self.model, self.values, self.dimensions = model, values, dimensions
        self.stack = [""]
        self.readings: list[Reading] = []
        self.shared: list[tuple[Axis, ...]] = []
        self.known: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if func == _SHAPE or name == "size":
            return self._size(func, args, kwargs)
        if getattr(func, "__globals__", None) is F.__dict__:
            with self:
                return _inside(func)(*args, **kwargs)
        result = func(*args, **kwargs)
        for number in (*args, *kwargs.values()) if name in COMPUTES else ():
            if isinstance(number, Tagged):
                self.counted(number.term)
        if self.unused:
            self.readings += self._beside_unused([x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)], name)
        if name in MOVES:
            self._follow(func, args, kwargs, result)
        if name in RESHAPES and isinstance(result, Tensor):
            self.shared += [axes for axes in self.dims_of(result) or () if len(axes) > 1]
        for term, kind, tensor, dim in NAMED[name](args, kwargs, result) if name in NAMED else ():
            line = self._line()
            if kind == "copies":
                self.readings += self._copies(term, tensor, args[0], dim, line, name)
                continue
            dim = dim % max(tensor.dim(), 1)
            for axis in (self.dims_of(tensor) or {dim: ()})[dim]:
                self.readings.append(Reading(term, kind, axis, tensor.shape[dim], line, name))
        return result

    def _size(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensor, result = args[0], func(*args, **kwargs)
        dims = self.dims_of(tensor) or [(None,)] * tensor.dim()
        if isinstance(result, torch.Size):
            return torch.Size([Tagged(size, SizeOf(axes[0], size)) for axes, size in zip(dims, result, strict=True)])
        dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        return Tagged(result, SizeOf(dims[int(dim)][0], result))

    def _beside_unused(self, tensors: Sequence[Tensor], name: str) -> Iterator[Reading]:
        """Yields the sizes of what is computed with a parameter that the graph does not have, as numbers."""
        if any(id(tensor) in self.unused for tensor in tensors):
            for dims in (found for tensor in tensors if (found := self.dims_of(tensor)) is not None):
                for axis in (axis for axes in dims for axis in axes if is_labelled(axis)):
                    yield Reading(size_of(axis), "size", axis, size_of(axis), self._line(), name)

    def _copies(self, term: Term, tensor: Tensor, source: Tensor, dim: int, line: Line, name: str) -> Iterator[Reading]:
        """Yields how many copies a tensor has of another along a dimension, counted from the end: the other's size is its own."""
        made, known = self.dims_of(tensor), self.dims_of(source)
        if made is None or known is None:
            return
        for axis in made[dim]:
            own = [factor.labels for factor in known[dim][0] if factor.labels is not None]
            for factor in axis:
                if factor.labels is not None and not any(np.array_equal(factor.labels, labels) for labels in own):
                    yield Reading(term, "size", (factor,), factor.size, line, name)

    def compared(self, a: Term, b: Term) -> None:
        """Notes that the code takes a way on which two terms are equal."""
        if a != b:
            self.readings.append(Reading(Computed(operator.sub, (a, b)), "equal", (), 0, self._line(), "=="))

    def counted(self, term: Term) -> None:
        """Notes that the code computes with a number of elements, as in ``x * head_dim**-0.5``, which the graph has as it was."""
        self.compared(term, evaluate(term, lambda leaf: leaf.value) or 0)

    def dims_of(self, tensor: Any) -> Dims | None:
        """Returns the axes of a tensor: those of the value of the graph that it is.

        Of several values alike rather one that the same module makes, and one of which something is known.
        """
        if not isinstance(tensor, Tensor) or tensor.is_meta:
            return None
        if tensor not in self.known:
            found = [(self.dimensions.of(value), module) for value, module in self.values.like(tensor)]
            likely = [(module == self.stack[-1], _labelled(dims), i) for i, (dims, module) in enumerate(found)]
            self.known[tensor] = found[max(likely)[2]][0] if found else None
        dims: Dims | None = self.known[tensor]
        return dims

    def _follow(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Finds the axes of what is moved about, where the graph moves it in another way."""
        results = [result] if isinstance(result, Tensor) else list(result)
        source = args[0]
        if isinstance(source, Tensor) and any(self.dims_of(part) is None for part in results):
            dims = self.dims_of(source)
            if dims is None:
                return
            index = func(numbered(source.shape), *args[1:], **kwargs)
            for part, where in zip(results, [index] if isinstance(index, Tensor) else index, strict=True):
                if self.dims_of(part) is None:
                    self.known[part] = self.dimensions.moved(dims, source.shape, where)

    def _line(self) -> Line:
        path = self.stack[-1]
        frame = sys._getframe(2)
        while frame.f_back is not None and frame.f_code.co_filename.startswith(_ELSEWHERE):
            frame = frame.f_back
        kind = type(self.model.get_submodule(path)).__name__
        return Line(path, kind, frame.f_code.co_name, frame.f_code.co_filename, frame.f_lineno)


def _labelled(dims: Dims | None) -> int:
    return sum(is_labelled(axes[0]) for axes in dims or ())


def _inside(function: Any) -> Any:
    """Returns a function of `torch.nn.functional` that hands itself to no mode: what it calls is seen instead."""
    names = {**function.__globals__, **dict.fromkeys(_HANDED, lambda *_: False)}
    found = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    found.__kwdefaults__ = function.__kwdefaults__
    return found


_HANDED = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")

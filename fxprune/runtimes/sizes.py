"""The sizes of a program's inputs that may change: their names, and other values for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.data.calls import Call

#: symbol of a program -> size
Sizes: TypeAlias = Mapping[Any, int]


def expression(size: Any) -> Any:
    """Returns the expression of a size that may change, None for a fixed one."""
    found = size.node.expr if isinstance(size, torch.SymInt) else None
    return found if found is not None and found.free_symbols else None


def sizes_of(inputs: Sequence[Tensor], tensors: Sequence[Tensor]) -> dict[Any, int]:
    """Returns the size that each symbol has in a call.

    Args:
        inputs: the program's, ``[...]`` each, with symbolic shapes.
        tensors: the call's, of the same ranks.
    """
    found: dict[Any, int] = {}
    for symbolic, tensor in zip(inputs, tensors, strict=True):
        for size, actual in zip(symbolic.shape, tensor.shape, strict=True):
            form = expression(size)
            if form is not None and len(form.free_symbols) == 1:
                (symbol,) = form.free_symbols
                found.setdefault(symbol, _solved(form, symbol, int(actual)))
    return found


def _solved(form: Any, symbol: Any, size: int) -> int:
    """Returns the symbol's value, where an expression that is linear in it has this size."""
    base, step = (int(form.subs({symbol: value})) for value in (0, 1))
    return (size - base) // (step - base)


def names_of(inputs: Mapping[str, Tensor], batched: Sequence[bool]) -> dict[Any, str]:
    """Returns a name for each symbol in the shapes of the inputs, ``[...]`` each, by their names.

    It is ``batch``, ``length`` for the first row length of ids, ``image_2`` (input, dimension) otherwise.
    """
    found: dict[Any, str] = {}
    for (label, symbolic), flag in zip(inputs.items(), batched, strict=True):
        ids = symbolic.ndim == 2 and not symbolic.is_floating_point()
        for dim, size in enumerate(symbolic.shape):
            form = expression(size)
            if form is not None and form.is_Symbol and form not in found:
                other = "length" if ids and "length" not in found.values() else f"{label}_{dim}"
                found[form] = "batch" if dim == 0 and flag else other
    return found


def named_shape(value: Tensor, names: Mapping[Any, str]) -> tuple[int | str, ...]:
    """Returns the shape of a tensor, ``[...]``, with names, and expressions of names, for the sizes that may change."""
    return tuple(
        int(size) if (form := expression(size)) is None else _renamed(str(form), names) for size in value.shape
    )


def _renamed(form: str, names: Mapping[Any, str]) -> str:
    by_symbol = {str(symbol): name for symbol, name in names.items()}
    return re.sub(r"\w+", lambda word: by_symbol.get(word[0], word[0]), form)


def other_sizes(own: Sizes, allows: Callable[[Sizes], bool]) -> dict[Any, int]:
    """Returns free sizes other than a call's, each near its own, that are allowed together; its own where there are none.

    Symbols of one size change alike, since a mask has the length of what it masks whether or not the program says so; each by
    itself if they cannot.
    """
    found = dict(own)
    for size in dict.fromkeys(own.values()):
        alike = [symbol for symbol, value in own.items() if value == size]
        together = _moved(found, alike, allows)
        for symbol in alike if together == found else ():
            together = _moved(together, [symbol], allows)
        found = together
    return found


def _moved(sizes: dict[Any, int], symbols: Sequence[Any], allows: Callable[[Sizes], bool]) -> dict[Any, int]:
    """Returns the sizes with another one for some symbols, which have one size; as they are if there is none."""
    tried = (sizes | dict.fromkeys(symbols, size) for size in _near(sizes[symbols[0]]))
    return next(filter(allows, tried), sizes)


def _near(size: int) -> list[int]:
    """Returns the sizes to try: odd and even ones, the half, the double, and the next multiple of 32."""
    near = (size + 1, size - 1, size + 2, size - 2, size + 4, size - 4, size // 2, size + 32, 2 * size)
    return [other for other in near if other > 1]


def within(sizes: Sizes, bounds: Mapping[Any, Any]) -> bool:
    """Returns whether each size lies within the bounds of its symbol, if it has any."""
    pairs = ((size, bounds.get(symbol)) for symbol, size in sizes.items())
    return all(bound is None or bool(bound.lower <= size <= bound.upper) for size, bound in pairs)


def shape_at(symbolic: Tensor, sizes: Sizes) -> list[int]:
    """Returns the shape of one of a program's inputs, ``[...]``, at some sizes of the symbols."""
    return [int(size) if (form := expression(size)) is None else int(form.subs(sizes)) for size in symbolic.shape]


def repeated(tensor: Tensor, dim: int, size: int) -> Tensor:
    """Returns a tensor ``[...]`` with another size in one dimension: repeated from the start, or cut."""
    if tensor.shape[dim] == size:
        return tensor
    return tensor.index_select(dim, torch.arange(size, device=tensor.device) % tensor.shape[dim])


def resized(call: Call, inputs: Sequence[Tensor], sizes: Sizes) -> Call:
    """Returns a call at other sizes: what it holds is repeated from the start, or cut.

    Args:
        call: the call.
        inputs: the program's, ``[...]`` each, with symbolic shapes.
        sizes: of the symbols.
    """
    shapes = iter(inputs)

    def fit(tensor: Tensor) -> Tensor:
        for dim, size in enumerate(shape_at(next(shapes), sizes)):
            tensor = repeated(tensor, dim, size)
        return tensor.clone()

    made: Call = pytree.tree_map_only(Tensor, fit, call)
    return made

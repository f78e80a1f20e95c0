"""What a call of a torch function says of sizes: which of its arguments are sizes of what, and which are only numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fxprune.homing.terms import Term, term_of

#: What a number may be: see `fxprune.homing.reading.Reading`.
Named = Literal["size", "place", "parts", "multiple", "equal", "divides", "copies"]

#: (term, what it names, tensor, dimension)
_Found = tuple[Term, Named, Tensor, int]


def _sizes(given: Sequence[Any], result: Any, first: int = 0) -> Iterator[_Found]:
    """Yields the sizes of a result that are given one by one; -1 says nothing."""
    sizes = given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
    for dim, size in enumerate(sizes, first):
        if isinstance(size, int) and size != -1 and isinstance(result, Tensor):
            yield term_of(size), "size", result, dim


def _of_result(args: Any, kwargs: Any, result: Any) -> Iterator[_Found]:
    """``x.view(a, b)``, ``torch.reshape(x, (a, b))``, ``x.new_zeros(a, b)``."""
    return _sizes(args[1:] or [kwargs.get("shape", kwargs.get("size", ()))], result)


def _made(args: Any, kwargs: Any, result: Any) -> Iterator[_Found]:
    """``torch.zeros(a, b)``."""
    return _sizes(args or [kwargs.get("size", ())], result)


def _unflattened(args: Any, kwargs: Any, result: Tensor) -> Iterator[_Found]:
    dim, sizes = [*args[1:], *kwargs.values()][:2]
    return _sizes([sizes], result, int(dim) % (result.dim() - len(sizes) + 1))


def _split(args: Any, kwargs: Any, result: Sequence[Tensor]) -> Iterator[_Found]:
    sizes = args[1] if len(args) > 1 else kwargs.get("split_size_or_sections", kwargs.get("split_size"))
    dim = int(args[2] if len(args) > 2 else kwargs.get("dim", 0))
    if isinstance(sizes, int):
        sizes = [sizes] * (len(result) - (int(result[-1].shape[dim]) != int(sizes)))
    for size, part in zip(sizes, result, strict=False):
        if isinstance(size, int) and size != -1:
            yield term_of(size), "size", part, dim


def _chunked(args: Any, kwargs: Any, result: Sequence[Tensor]) -> Iterator[_Found]:
    parts = args[1] if len(args) > 1 else kwargs["chunks"]
    dim = int(args[2] if len(args) > 2 else kwargs.get("dim", 0))
    yield term_of(parts), "parts", args[0], dim


def _narrowed(args: Any, kwargs: Any, result: Tensor) -> Iterator[_Found]:
    dim, start, length = [*args[1:], *kwargs.values()][:3]
    if isinstance(start, int):
        yield term_of(start), "place", args[0], int(dim)
    yield term_of(length), "size", result, int(dim)


def _indexed(args: Any, kwargs: Any, result: Tensor) -> Iterator[_Found]:
    """``x[:, :a]``, ``x[..., 3]``: the ends of slices are places."""
    tensor, index = args[:2]
    index = index if isinstance(index, tuple) else (index,)
    taken = sum(part is not None and part is not Ellipsis and not isinstance(part, bool) for part in index)
    dim = 0
    for part in index:
        if part is Ellipsis:
            dim += tensor.dim() - taken
            continue
        if isinstance(part, slice):
            for end in (part.start, part.stop):
                if isinstance(end, int) and end != 0:
                    yield term_of(end), "place", tensor, dim
            if part.step not in (None, 1):
                yield from _as_it_is(tensor, dim)
        elif isinstance(part, int) and not isinstance(part, bool) and part != 0:
            yield term_of(part), "place", tensor, dim
        elif isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8):
            dim += part.dim() - 1
        dim += part is not None


def _as_it_is(tensor: Tensor, dim: int) -> Iterator[_Found]:
    """Every how manieth coordinate, or so many places further on: others if any were gone before."""
    yield int(tensor.shape[dim]), "size", tensor, dim


def _rolled(args: Any, kwargs: Any, result: Tensor) -> Iterator[_Found]:
    dims = args[2] if len(args) > 2 else kwargs.get("dims", ())
    for dim in (dims,) if isinstance(dims, int) else dims or range(args[0].dim()):
        yield from _as_it_is(args[0], int(dim))


def _selected(args: Any, kwargs: Any, result: Tensor) -> Iterator[_Found]:
    dim, place = [*args[1:], *kwargs.values()][:2]
    if place != 0:
        yield term_of(place), "place", args[0], int(dim)


def _along(position: int, default: int) -> Callable[[Any, Any, Any], Iterator[_Found]]:
    """``unbind(x, dim)``, ``tensor_split(x, parts, dim)``: what each part is follows from all of the dimension."""

    def found(args: Any, kwargs: Any, result: Any) -> Iterator[_Found]:
        dim = args[position] if len(args) > position else kwargs.get("dim", default)
        return _as_it_is(args[0], int(dim))

    return found


def _padded(args: Any, kwargs: Any, result: Tensor) -> Iterator[_Found]:
    """``pad(x, (before, after))``, last dimension first: what is put on lies before a place, and what is cut off as well."""
    pads = args[1] if len(args) > 1 else kwargs["pad"]
    for i, size in enumerate(pads):
        wide = result if size > 0 else args[0]
        if size != 0:
            many = size if size > 0 else -size
            yield term_of(many if i % 2 == 0 else -many), "place", wide, -1 - i // 2


def _repeated(args: Any, kwargs: Any, result: Tensor) -> Iterator[_Found]:
    """``x.repeat(a, b)``, ``torch.tile(x, (a, b))``: the last of them is for the last dimension."""
    given = args[1:] or [kwargs.get("repeats", kwargs.get("dims", ()))]
    given = given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
    for i, many in enumerate(reversed(given), 1):
        if isinstance(many, int) and many != 1 and i <= args[0].dim():
            yield term_of(many), "copies", result, -i


def _interleaved(args: Any, kwargs: Any, result: Tensor) -> Iterator[_Found]:
    many = args[1] if len(args) > 1 else kwargs.get("repeats")
    dim = args[2] if len(args) > 2 else kwargs.get("dim")
    if isinstance(many, int) and isinstance(dim, int):
        yield term_of(many), "copies", result, int(dim) - (args[0].dim() if dim >= 0 else 0)


def _grouped(args: Any, kwargs: Any, result: Tensor) -> Iterator[_Found]:
    """``grouped_mm(x, weights)`` takes rows and columns of 16 bytes."""
    for tensor, dims in ((args[0], (-1,)), (args[1], (-1, -2))):
        for dim in dims:
            yield 16 // tensor.element_size(), "multiple", tensor, dim


def _counted(position: int, name: str) -> Callable[[Any, Any, Any], Iterator[_Found]]:
    """``one_hot(x, classes)``, ``histc(x, bins)``, ``arange(end)``: an argument is the last size of the result."""

    def found(args: Any, kwargs: Any, result: Tensor) -> Iterator[_Found]:
        size = args[position] if len(args) > position else kwargs.get(name)
        if isinstance(size, int) and result.dim() and result.shape[-1] == size:
            yield term_of(size), "size", result, -1

    return found


def _convolved(args: Any, kwargs: Any, result: Tensor) -> Iterator[_Found]:
    """``conv2d(x, weight, groups=channels)`` of each channel by itself: there are as many groups as channels."""
    groups = args[6] if len(args) > 6 else kwargs.get("groups", 1)
    x, weight = args[0], args[1] if len(args) > 1 else kwargs["weight"]
    if isinstance(groups, int) and groups > 1 and weight.shape[1] == 1 and result.dim() == weight.dim():
        yield term_of(groups), "size", x, 1


def _shuffled(args: Any, kwargs: Any, result: Tensor) -> Iterator[_Found]:
    """``channel_shuffle(x, groups)``: the channels are cut into as many equal parts."""
    groups = args[1] if len(args) > 1 else kwargs["groups"]
    yield term_of(groups), "parts", args[0], 1


def _normed(args: Any, kwargs: Any, result: Tensor) -> Iterator[_Found]:
    shape = args[1] if len(args) > 1 else kwargs["normalized_shape"]
    return _sizes([shape], result, result.dim() - len(shape))


def _attended(args: Any, kwargs: Any, result: Tensor) -> Iterator[_Found]:
    """``scaled_dot_product_attention(q, k, v)`` divides by the root of what a head's width is; the graph by that of what it was."""
    if kwargs.get("scale") is None:
        for tensor in [*args, *(kwargs[name] for name in ("query", "key") if name in kwargs)][:2]:
            yield int(tensor.shape[-1]), "size", tensor, -1


#: What gives a tensor another shape.
RESHAPES = frozenset(["view", "reshape", "unflatten"])

#: What computes with numbers that are no sizes.
COMPUTES = frozenset(
    ["add", "sub", "mul", "div", "true_divide", "floor_divide", "pow", "rsub", "tensor", "as_tensor", "scalar_tensor", "__rpow__",
     "__radd__", "__rmul__", "__rdiv__", "__rtruediv__", "__rsub__", "add_", "sub_", "mul_", "div_"]
)  # fmt: skip

#: What only moves the elements of its first argument.
MOVES = frozenset(
    [
        "view",
        "reshape",
        "permute",
        "transpose",
        "unbind",
        "__getitem__",
        "split",
        "split_with_sizes",
        "chunk",
        "flatten",
        "squeeze",
        "unsqueeze",
        "contiguous",
        "clone",
        "unflatten",
        "select",
        "narrow",
        "movedim",
        "swapaxes",
        "t",
        "flip",
        "roll",
        "expand",
        "repeat",
        "repeat_interleave",
    ]
)

NAMED: Mapping[str, Callable[[Any, Any, Any], Iterator[_Found]]] = {
    **dict.fromkeys(
        ("view", "reshape", "expand", "broadcast_to", "new_zeros", "new_ones", "new_empty", "new_full"), _of_result
    ),
    **dict.fromkeys(("zeros", "ones", "empty", "full", "rand", "randn"), _made),
    "unflatten": _unflattened,
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    **dict.fromkeys(("chunk", "unsafe_chunk"), _chunked),
    "narrow": _narrowed,
    **dict.fromkeys(("pad", "constant_pad_nd"), _padded),
    "roll": _rolled,
    **dict.fromkeys(("repeat", "tile"), _repeated),
    "repeat_interleave": _interleaved,
    **dict.fromkeys(("__getitem__", "__setitem__"), _indexed),
    "select": _selected,
    "unbind": _along(1, 0),
    "tensor_split": _along(2, 0),
    "vsplit": _along(9, 0),
    "hsplit": _along(9, 1),
    **dict.fromkeys(("layer_norm", "rms_norm"), _normed),
    **dict.fromkeys(("grouped_mm", "_grouped_mm"), _grouped),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolved),
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), _shuffled),
    "scaled_dot_product_attention": _attended,
    "one_hot": _counted(1, "num_classes"),
    "histc": _counted(1, "bins"),
    "bincount": _counted(2, "minlength"),
    "arange": _counted(0, "end"),
    "eye": _counted(0, "n"),
}


def sizes_named(func: Any, args: Any, kwargs: Any, result: Any) -> Iterator[tuple[Term, Tensor, int]]:
    """Yields what a call of a function names of the sizes of its one result, ``[...]``: term, result, dimension."""
    name = getattr(func, "__name__", "")
    if name in NAMED and isinstance(result, Tensor):
        for term, kind, tensor, dim in NAMED[name](args, kwargs, result):
            if kind == "size" and tensor is result and tensor.dim():
                yield term, tensor, dim

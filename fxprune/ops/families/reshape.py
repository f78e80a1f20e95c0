"""Reshape, permute, transpose, squeeze, expand, repeat and what is made of them: labels move or repeat."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from torch import fx

from fxprune.algebra import axes as ax
from fxprune.algebra.axes import Axes
from fxprune.capturing.normalize.layout import dims_of, moved
from fxprune.ops.constants import Constants, beside, kept
from fxprune.ops.registry import register_rule
from fxprune.ops.rule import Rule
from fxprune.ops.slicer import Edit, Slicer, noted_sizes
from fxprune.ops.tracer import Tracer


def _reshape(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: [b, n, h * d].  After: [b, n, h, d], where a channel is a row h or a position d of every row."""
    return t.reshape(node, t.axes(a.self, node), t.shape(node))


def _slice_sizes(s: Slicer, node: fx.Node, a: SimpleNamespace) -> Edit:
    name = "shape" if hasattr(a, "shape") else "size"
    return Edit({name: [s.resize(size, axis) for size, axis in zip(getattr(a, name), s.axes(node), strict=True)]})


def _reorder(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Puts dimensions in another order, or new ones of size one between them."""
    x = t.axes(a.self, node)
    return tuple(() if dim is None else x[dim] for dim in moved(node, len(x)))


def _squeeze(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    x, shape = t.axes(a.self, node), t.shape(a.self)
    dropped = [d for d in dims_of(a.dim, len(x)) if shape[d] == 1]
    t.freeze(node, ax.joined(x[d] for d in dropped), "the size of one that is dropped")
    return tuple(axis for dim, axis in enumerate(x) if dim not in dropped)


def _slice_squeeze(s: Slicer, node: fx.Node, a: SimpleNamespace) -> Edit:
    """Names what is dropped: an axis that shrinks to one stays."""
    x = s.axes(a.self, node)
    return Edit({"dim": [d for d in sorted(dims_of(a.dim, len(x))) if ax.size_of(x[d]) == 1]})


def _expand(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: [h, 1, d] to [h, r, d].  After: r are channels of their own, as the literal can be edited."""
    x, shape = t.axes(a.self, node), t.shape(node)
    x = ((),) * (len(shape) - len(x)) + x
    grown = [d for d, axis in enumerate(x) if ax.size_of(axis) != shape[d]]
    t.freeze(node, ax.joined(x[d] for d in grown), "the size of one that is broadcast")
    return tuple(t.new_axis(node, shape[d], t.dynamic(node, d)) if d in grown else axis for d, axis in enumerate(x))


def _counts(a: SimpleNamespace, rank: int) -> list[Any]:
    """Returns how often each dimension is repeated."""
    counts = list(a.repeats if hasattr(a, "repeats") else a.dims)
    return [1] * (rank - len(counts)) + counts


def _repeat(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: [c] three times.  After: [(3 x c)], where a channel is a copy, or position c of every copy."""
    x = t.axes(a.self, node)
    counts = _counts(a, len(x))
    x = ((),) * (len(counts) - len(x)) + x
    copies = tuple(
        t.new_axis(node, 1 if count == 1 else t.shape(node)[dim] // ax.size_of(axis), not isinstance(count, int))
        for dim, (axis, count) in enumerate(zip(x, counts, strict=True))
    )
    t.note(node, **{str(dim): axis for dim, axis in enumerate(copies)})
    return tuple((*copy, *axis) for copy, axis in zip(copies, x, strict=True))


def _slice_repeat(s: Slicer, node: fx.Node, a: SimpleNamespace) -> Edit:
    counts = enumerate(_counts(a, len(s.axes(node))))
    name = "repeats" if hasattr(a, "repeats") else "dims"
    return Edit({name: [s.resize(count, s.noted(node, str(dim))) for dim, count in counts]})


def _repeat_interleave(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes | None:
    """Before: [h] each twice.  After: [(h x 2)]."""
    x = list(t.axes(a.self, node))
    if a.dim is None or not isinstance(a.repeats, int):
        return None
    copies = t.new_axis(node, a.repeats, dynamic=False)
    t.note(node, repeats=copies)
    x[a.dim] = (*x[a.dim], *copies)
    return tuple(x)


def _slice_repeat_interleave(s: Slicer, node: fx.Node, a: SimpleNamespace) -> Edit:
    return Edit({**noted_sizes(s, node, a).arguments, "output_size": None})


def _pixel_shuffle(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: [c * r * r, h, w].  After: [c, h * r, w * r]; r is a literal, so its positions stay."""
    *lead, channel, h, w = t.axes(a.self, node)
    r = a.upscale_factor
    c, r1, r2 = t.reshape(node, [channel], [t.shape(node)[-3], r, r])
    t.freeze(node, (*r1, *r2), "the upscale factor")
    return (*lead, c, (*h, *r1), (*w, *r2))


def _pixel_unshuffle(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: [c, h * r, w * r].  After: [c * r * r, h, w], where a channel takes its r * r positions along."""
    *lead, channel, h, w = t.axes(a.self, node)
    r = a.downscale_factor
    height, width = t.shape(node)[-2:]
    h, r1 = t.reshape(node, [h], [height, r])
    w, r2 = t.reshape(node, [w], [width, r])
    t.freeze(node, (*r1, *r2), "the downscale factor")
    return (*lead, (*channel, *r1, *r2), h, w)


def _channel_shuffle(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: [b, g * c].  After: [b, c * g]."""
    x = t.axes(a.self, node)
    group, inner = t.reshape(node, [x[1]], [a.groups, t.shape(node)[1] // a.groups])
    t.note(node, groups=group)
    return (x[0], (*inner, *group), *x[2:])


def _im2col(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: [b, c, h, w].  After: [b, c * kernel, positions]."""
    *lead, channel, h, w = t.axes(a.self, node)
    t.freeze(node, (*h, *w), "the spatial axis")
    kernel = ax.fixed(a.kernel_size[0] * a.kernel_size[1])
    return (*lead, (*channel, *kernel), ax.fixed(t.shape(node)[-1]))


def _col2im(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: [b, c * kernel, positions].  After: [b, c, h, w]."""
    *lead, columns, positions = t.axes(a.self, node)
    t.freeze(node, positions, "the positions")
    channel, kernel = t.reshape(node, [columns], [t.shape(node)[-3], a.kernel_size[0] * a.kernel_size[1]])
    t.freeze(node, kernel, "the kernel")
    return (*lead, channel, *(ax.fixed(size) for size in t.shape(node)[-2:]))


def _unfold(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: [b, n].  After: [b, windows, size], all of n needed where it is."""
    return (*t.fix(node, t.axes(a.self, node), [a.dimension], "the unfolded axis"), ax.fixed(a.size))


def _reshaped(c: Constants, node: fx.Node, a: SimpleNamespace) -> int | None:
    """The dimension of the same size with as many values behind it, if there is one."""
    before, after, dim = c.shape(a.self) or (), c.shape(node) or (), c.first(node, a)
    behind, size = math.prod(before[dim + 1 :]), before[dim]
    places = [d for d, s in enumerate(after) if s == size and math.prod(after[d + 1 :]) == behind]
    return places[0] if len(places) == 1 and size > 1 else None


def _reordered(c: Constants, node: fx.Node, a: SimpleNamespace) -> int | None:
    return moved(node, c.rank(a.self)).index(c.first(node, a))


def _repeated(c: Constants, node: fx.Node, a: SimpleNamespace) -> int | None:
    """Other dimensions than the channels' are repeated."""
    dim = kept(c, node, a)
    return dim if dim is not None and _counts(a, c.rank(node))[dim] == 1 else None


def _interleaved(c: Constants, node: fx.Node, a: SimpleNamespace) -> int | None:
    return None if a.dim is None else beside(c, node, a)


def _shuffled(c: Constants, node: fx.Node, a: SimpleNamespace) -> int | None:
    return 1 if c.only(node, a.self) == 1 else None


def _windows(c: Constants, node: fx.Node, a: SimpleNamespace) -> int | None:
    dim = c.first(node, a)
    return None if dim == a.dimension % c.rank(a.self) else dim


_SQUEEZE = Rule(_squeeze, slice=_slice_squeeze, literals=("dim",), carries=True, moves=_reshaped)

_VIEW = Rule(_reshape, slice=_slice_sizes, kind="reshape", carries=True, moves=_reshaped, view=True, idle=True)
register_rule("reshape.default", replace(_VIEW, literals=("shape",)))
register_rule("view.default _unsafe_view.default", replace(_VIEW, literals=("size",)))
register_rule(
    "permute.default transpose.int t.default swapaxes.default swapdims.default movedim.int movedim.intlist "
    "moveaxis.int moveaxis.intlist mT.default mH.default adjoint.default numpy_T.default matrix_H.default",
    Rule(_reorder, carries=True, moves=_reordered),
)
register_rule("unsqueeze.default", Rule(_reorder, carries=True, moves=_reshaped))
register_rule("squeeze.dims", _SQUEEZE)  # every other form names its dimensions once it is captured
register_rule("expand.default", Rule(_expand, slice=_slice_sizes, literals=("size",), carries=True, moves=kept))
_REPEAT = Rule(_repeat, slice=_slice_repeat, moves=_repeated, idle=True)
register_rule("repeat.default", replace(_REPEAT, literals=("repeats",)))
register_rule("tile.default", replace(_REPEAT, literals=("dims",)))
register_rule(
    "repeat_interleave.self_int",
    Rule(
        _repeat_interleave,
        slice=_slice_repeat_interleave,
        literals=("repeats", "output_size"),
        moves=_interleaved,
        idle=True,
    ),
)
register_rule("pixel_shuffle.default", Rule(_pixel_shuffle))
register_rule("pixel_unshuffle.default", Rule(_pixel_unshuffle))
register_rule(
    "channel_shuffle.default", Rule(_channel_shuffle, slice=noted_sizes, literals=("groups",), constant=_shuffled)
)
register_rule("im2col.default", Rule(_im2col))
register_rule("col2im.default", Rule(_col2im))
register_rule("unfold.default", Rule(_unfold, moves=_windows))

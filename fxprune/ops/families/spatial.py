"""Pooling, interpolation and sampling: space stays, channels pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

from torch import fx

from fxprune.algebra import axes as ax
from fxprune.algebra.axes import Axes
from fxprune.ops.constants import Constants, kept
from fxprune.ops.registry import register_rule
from fxprune.ops.rule import Rule
from fxprune.ops.tracer import Tracer


def _windows(spatial: int) -> Callable[[Tracer, fx.Node, SimpleNamespace], Axes]:
    def rule(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
        """Before: x[b, c, h, w].  After: [b, c, h', w'], c untouched."""
        source = a.self if hasattr(a, "self") else a.input
        x = t.axes(source, node)
        first = len(x) - spatial
        for axis in x[first:]:
            t.freeze(node, axis, "the spatial axis")
        return (*x[:first], *(ax.fixed(size) for size in t.shape(node)[first:]))

    return rule


def _with_indices(spatial: int) -> Callable[[Tracer, fx.Node, SimpleNamespace], list[Axes]]:
    def rule(t: Tracer, node: fx.Node, a: SimpleNamespace) -> list[Axes]:
        x = t.axes(a.self, node)
        first = len(x) - spatial
        for axis in x[first:]:
            t.freeze(node, axis, "the spatial axis")
        shape = t.parts(node)[0].shape
        axes = (*x[:first], *(ax.fixed(size) for size in shape[first:]))
        return [axes, axes]

    return rule


def _sampled(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[b, c, h, w], grid[b, h', w', 2].  After: [b, c, h', w'], c untouched."""
    x, grid = t.axes(a.input, node), t.axes(a.grid, node)
    for axis in (*x[2:], *grid[1:]):
        t.freeze(node, axis, "the spatial axis")
    batch = ax.broadcast(t.channels, [x[0], grid[0]], t.where(node))
    return (batch, x[1], *(ax.fixed(size) for size in t.shape(node)[2:]))


def _averaged(c: Constants, node: fx.Node, a: SimpleNamespace) -> int | None:
    """The mean of a window is the constant, unless zeros around the map count, or the divisor is another."""
    padding = [a.padding] if isinstance(a.padding, int) else a.padding
    zeros = any(padding) and a.count_include_pad
    return None if zeros or getattr(a, "divisor_override", None) is not None else kept(c, node, a)


for _n in (1, 2, 3):
    _pool = Rule(_windows(_n), moves=kept)
    register_rule(f"avg_pool{_n}d.default", replace(_pool, kind="pool", moves=_averaged))
    register_rule(f"max_pool{_n}d.default", replace(_pool, kind="pool"))
    register_rule(f"adaptive_avg_pool{_n}d.default _adaptive_avg_pool{_n}d.default", _pool)
    register_rule(
        f"max_pool{_n}d_with_indices.default adaptive_max_pool{_n}d.default", Rule(_with_indices(_n), moves=kept)
    )
    register_rule(
        " ".join(
            f"{name}{_n}d.{o}" for name in ("upsample_nearest", "_upsample_nearest_exact") for o in ("default", "vec")
        ),
        _pool,
    )
for _name, _n in (
    ("upsample_linear1d", 1),
    ("upsample_bilinear2d", 2),
    ("upsample_bicubic2d", 2),
    ("_upsample_bilinear2d_aa", 2),
    ("_upsample_bicubic2d_aa", 2),
    ("upsample_trilinear3d", 3),
):
    register_rule(f"{_name}.default {_name}.vec", Rule(_windows(_n), moves=kept))
register_rule("grid_sampler.default", Rule(_sampled))

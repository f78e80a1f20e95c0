"""Pooling, interpolation and sampling: space stays, channels pass."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

from torch import fx

from fxprune.algebra import axes as ax
from fxprune.algebra.axes import Axes
from fxprune.ops.registry import register
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


for _n in (1, 2, 3):
    register(
        [f"avg_pool{_n}d.default", f"max_pool{_n}d.default", f"adaptive_avg_pool{_n}d.default",
         f"_adaptive_avg_pool{_n}d.default",
         *(f"upsample_nearest{_n}d.{o}" for o in ("default", "vec")),
         *(f"_upsample_nearest_exact{_n}d.{o}" for o in ("default", "vec"))],
        _windows(_n),
    )  # fmt: skip
    register([f"max_pool{_n}d_with_indices.default", f"adaptive_max_pool{_n}d.default"], _with_indices(_n))
register(
    [f"{name}.{overload}" for overload in ("default", "vec") for name in (
        "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")],
    _windows(2),
)  # fmt: skip
register(["upsample_linear1d.default", "upsample_linear1d.vec"], _windows(1))
register(["upsample_trilinear3d.default", "upsample_trilinear3d.vec"], _windows(3))
register(["grid_sampler.default"], _sampled)

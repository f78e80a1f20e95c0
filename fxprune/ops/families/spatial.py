"""Pooling, interpolation and sampling: space stays, channels pass."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

from torch import fx

from fxprune.algebra import axes as ax
from fxprune.algebra.axes import Axes
from fxprune.ops.constants import Constants, kept
from fxprune.ops.registry import register_rule
from fxprune.ops.rule import Rule, twice
from fxprune.ops.tracer import Tracer


def _windows(t: Tracer, node: fx.Node, a: SimpleNamespace, spatial: int) -> Axes:
    """Before: x[b, c, h, w].  After: [b, c, h', w'], c untouched."""
    x = t.axes(a.self if hasattr(a, "self") else a.input, node)
    return t.fix(node, x, range(len(x) - spatial, len(x)), "the spatial axis")


def _sampled(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[b, c, h, w], grid[b, h', w', 2].  After: [b, c, h', w'], c untouched."""
    x, grid = t.axes(a.input, node), t.axes(a.grid, node)
    t.freeze(node, ax.joined(grid[1:]), "the spatial axis")
    return (t.relate(node, x[0], grid[0]), *t.fix(node, x, range(2, len(x)), "the spatial axis")[1:])


def _averaged(c: Constants, node: fx.Node, a: SimpleNamespace) -> int | None:
    """The mean of a window is the constant, unless zeros around the map count, or the divisor is another."""
    padding = [a.padding] if isinstance(a.padding, int) else a.padding
    zeros = any(padding) and a.count_include_pad
    return None if zeros or getattr(a, "divisor_override", None) is not None else kept(c, node, a)


_SMOOTH = {
    1: "upsample_linear1d",
    2: "upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa",
    3: "upsample_trilinear3d",
}
for _n in (1, 2, 3):
    _pool = Rule(partial(_windows, spatial=_n), moves=kept)
    register_rule(f"avg_pool{_n}d.default", replace(_pool, kind="pool", moves=_averaged))
    register_rule(f"max_pool{_n}d.default", replace(_pool, kind="pool"))
    register_rule(f"adaptive_avg_pool{_n}d.default _adaptive_avg_pool{_n}d.default", _pool)
    _indexed = f"max_pool{_n}d_with_indices.default adaptive_max_pool{_n}d.default"
    register_rule(_indexed, replace(_pool, couple=twice(_pool.couple)))
    for _name in (f"upsample_nearest{_n}d", f"_upsample_nearest_exact{_n}d", *_SMOOTH[_n].split()):
        register_rule(f"{_name}.default {_name}.vec", _pool)
register_rule("grid_sampler.default", Rule(_sampled))

"""Values made from literals: free in every static dimension."""

from __future__ import annotations

from types import SimpleNamespace

from torch import fx

from fxprune.algebra import axes as ax
from fxprune.algebra.axes import Axes
from fxprune.ops.registry import register_rule
from fxprune.ops.rule import Rule
from fxprune.ops.tracer import Tracer


def create(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """After: nothing depends on a parameter, so each reader may take the coordinates that it needs."""
    t.bound.discard(node)  # an operand such as new_zeros' lends its dtype only
    return tuple(ax.fixed(size) if t.dynamic(node, dim) else ax.free(size) for dim, size in enumerate(t.shape(node)))


register_rule(
    "arange.default arange.start arange.start_step linspace.default zeros.default ones.default full.default "
    "empty.memory_format eye.default eye.m scalar_tensor.default new_zeros.default new_ones.default new_full.default "
    "new_empty.default rand.default randn.default tril_indices.default triu_indices.default randint.default randint.low",
    Rule(create),
)

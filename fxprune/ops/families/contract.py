"""Linear, bilinear, matmul, bmm, addmm, einsum: one rule for every sum of products, told by its subscripts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from torch import Tensor, fx, nn

from fxprune.algebra import axes as ax
from fxprune.algebra.axes import Axes, Axis
from fxprune.ops.constants import Constants
from fxprune.ops.modules import Layer, Site, affine
from fxprune.ops.registry import register_rule
from fxprune.ops.rule import Rule
from fxprune.ops.tracer import Tracer
from fxprune.ops.twin import Twin


def product(
    t: Tracer, node: fx.Node, operands: Sequence[Any], subscripts: Sequence[list[str]], out: Sequence[str]
) -> Axes:
    """Couples a sum of products: axes with one subscript are one axis, those not in ``out`` are contracted.

    Before: linear x[b, i], w[o, i].  After: x's and w's i are the same channels, the result is [b, o].
    """
    found: dict[str, list[Axis]] = {}
    sizes: dict[str, int] = {}
    for operand, letters in zip(operands, subscripts, strict=True):
        axes, example = t.axes(operand, node), t.example(operand)
        for letter, axis, size in zip(letters, axes, example, strict=True):
            found.setdefault(letter, []).append(axis)
            sizes[letter] = max(sizes.get(letter, 1), size)
    axis_of = {letter: ax.broadcast(t.channels, axes, t.where(node)) for letter, axes in found.items()}
    _note_weights(t, operands, subscripts, axis_of, out)
    macs = math.prod(sizes.values())
    weight = next((w for w in operands[1:] if w.op == "get_attr"), None) if len(operands) == 2 else None
    loops = list(axis_of.values())
    contracted = [letter for letter in axis_of if letter not in out]
    if not contracted:  # an outer product sums nothing, but it counts
        t.contract(node, (operands[0], 0), (), loops, macs, weight)
    for letter in contracted:
        at, *others = [
            (x, names.index(letter)) for x, names in zip(operands, subscripts, strict=True) if letter in names
        ]
        other = others[0] if others else None
        beside = None if other is None or other[0] is weight else other
        t.contract(node, at, axis_of[letter], loops, macs, weight, other[1] if other else 1, beside)
        loops, macs = [], 0  # counted once
    if weight is None and len(operands) == 2:
        shared = {letter for letter in subscripts[0] if letter in subscripts[1] and letter in out}
        rest = [axis for letter, axis in axis_of.items() if letter not in shared]
        _mark_heads(t, tuple(axis_of[letter] for letter in shared), rest)
    return tuple(axis_of[letter] for letter in out)


def _note_weights(
    t: Tracer, operands: Sequence[Any], subscripts: Sequence[list[str]], axis_of: Mapping[str, Axis], out: Sequence[str]
) -> None:
    """Tells the axes that a weight makes, those of layers side by side, and experts, where these are added up."""
    weights = [t.weight(x) for x in operands]
    for x, letters, weight in zip(operands, subscripts, weights, strict=True):
        if weight is None or None not in weights:  # learned tokens through a layer
            continue
        others = {letter for y, names in zip(operands, subscripts, strict=True) if y is not x for letter in names}
        t.made += ax.labels_of(ax.joined(axis_of[n] for n in letters if n in out and n not in others))
        if len(t.shape(weight)) > 2:
            t.stacked += ax.labels_of(ax.joined(axis_of[n] for n in letters))
    for letter, axis in axis_of.items():
        if letter not in out:
            t.experts(axis)


def _linear(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    lead = [f"b{i}" for i in range(len(t.shape(a.input)) - 1)]
    out = ["o"] if len(t.shape(a.weight)) == 2 else []
    axes = product(t, node, [a.input, a.weight], [[*lead, "i"], [*out, "i"]], [*lead, *out])
    bias = t.axes(a.bias, node) if a.bias is not None else ()
    return (*axes[:-1], t.relate(node, axes[-1], bias[0])) if bias else axes


def _matmul(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    left, right = a.self, _right(a)
    n, m = len(t.shape(left)), len(t.shape(right))
    batch = [f"b{i}" for i in range(max(n, m, 2) - 2, 0, -1)]  # aligned at the right
    rows = ["m"] if n > 1 else []
    columns = ["n"] if m > 1 else []
    left_names = [*batch[len(batch) - max(n - 2, 0) :], *rows, "k"]
    right_names = [*batch[len(batch) - max(m - 2, 0) :], "k", *columns]
    return product(t, node, [left, right], [left_names, right_names], [*batch, *rows, *columns])


def _right(a: SimpleNamespace) -> fx.Node:
    """Returns the second operand of a product, whose name differs among the ops."""
    found: fx.Node = next(v for k, v in vars(a).items() if k in ("other", "mat2", "vec", "tensor"))
    return found


def _mark_heads(t: Tracer, batch: Axes, rest: Sequence[Axis]) -> None:
    """A batch axis with channels of a product of two activations is what the field calls heads."""
    if not any(ax.is_labelled(axis) for axis in batch):
        return
    ax.mark(t.channels, ax.joined(batch), "head")
    ax.mark(t.channels, ax.joined(rest), "head_dim")


def _addmm(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    left, right = (a.mat1, a.mat2) if hasattr(a, "mat1") else (a.batch1, a.batch2)
    batch = ["b"] if len(t.shape(left)) == 3 else []
    axes = product(t, node, [left, right], [[*batch, "m", "k"], [*batch, "k", "n"]], [*batch, "m", "n"])
    return t.broadcast(node, axes, t.axes(a.self, node))


def _letters(equation: str) -> tuple[list[str], str]:
    """Before: "bi,oi->bo".  After: ["bi", "oi"], "bo"."""
    left, _, right = equation.replace(" ", "").partition("->")
    return left.split(","), right


def _einsum(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes | None:
    names, out = _letters(a.equation)
    if "->" not in a.equation or "." in a.equation or any(len(set(part)) != len(part) for part in [*names, out]):
        return None
    return product(t, node, a.tensors, [list(part) for part in names], list(out))


def _bilinear(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[b, i], y[b, j], w[o, i, j].  After: each of x and y shares an axis with w, and both are summed; [b, o]."""
    *lead, first = t.axes(a.input1, node)
    *beside, second = t.axes(a.input2, node)
    outputs, rows, columns = t.axes(a.weight, node)
    lead = list(t.broadcast(node, lead, beside))
    first, second = t.relate(node, first, rows), t.relate(node, second, columns)
    if a.bias is not None:
        outputs = t.relate(node, outputs, t.axes(a.bias, node)[0])
    at = len(lead)
    macs = math.prod(t.example(a.input1)[:-1]) * math.prod(t.example(a.weight))
    t.contract(node, (a.input1, at), first, (first, second, outputs), macs, a.weight, 1)
    t.contract(node, (a.input2, at), second, (), 0, a.weight, 2)
    return (*lead, outputs)


def _grouped_mm(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes | None:
    """Before: tokens[n, k] sorted by expert, weight[e, k, m], ends[e].  After: [n, m]; e goes if nobody is sent there."""
    values = [value for value in vars(a).values() if t.is_tensor(value)]
    if len(t.shape(values[0])) != 2 or len(t.shape(values[1])) != 3:
        return None
    tokens, (experts, inner, outer) = t.axes(values[0], node), t.axes(values[1], node)
    t.freeze(node, tokens[0], "the tokens")
    if len(values) == 3 and t.within(t.axes(values[2], node)[0], t.routed):
        t.relate(node, experts, t.axes(values[2], node)[0])
        t.statistic(node)
    else:
        t.freeze(node, experts, "the experts")
    inner = t.relate(node, tokens[1], inner)
    macs = math.prod(t.example(values[0])) * t.example(values[1])[2]
    t.contract(node, (values[0], 1), inner, (inner, outer), macs)
    return (tokens[0], outer)


def _twin_grouped_mm(t: Twin, node: fx.Node, a: SimpleNamespace) -> Tensor:
    """Multiplies by the experts that stay; the rows of ``ends`` that are gone say nothing."""
    first, second, *rest = [name for name, value in vars(a).items() if isinstance(t.value(value), Tensor)][:3]
    kept = {
        name: [
            (d, axis)
            for d, axis in enumerate(t.axes(getattr(a, name), node))
            if (name, d) not in ((first, 0), (second, 2))
        ]
        for name in (first, second, *rest)
    }
    return t.run(node, **t.given(a, **kept))  # type: ignore[no-any-return]


def _of_linear(site: Site) -> nn.Module | None:
    weight = site.tensors["weight"]
    if weight.dim() != 2:
        return None
    return nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in site.tensors, device="meta")


def _of_bilinear(site: Site) -> nn.Module:
    outputs, first, second = site.tensors["weight"].shape
    return nn.Bilinear(first, second, outputs, bias="bias" in site.tensors, device="meta")


def _empty_linear(c: Constants, node: fx.Node, a: SimpleNamespace) -> tuple[int, fx.Node | None] | None:
    return (c.rank(node) - 1, a.bias) if c.rank(a.weight) == 2 else None


def _empty_matmul(c: Constants, node: fx.Node, a: SimpleNamespace) -> tuple[int, fx.Node | None] | None:
    return (c.rank(node) - 1, None) if c.rank(_right(a)) > 1 else None


def _empty_addmm(c: Constants, node: fx.Node, a: SimpleNamespace) -> tuple[int, fx.Node | None] | None:
    return (1, a.self) if c.rank(a.self) == 1 and a.beta == 1 else None


def _empty_einsum(c: Constants, node: fx.Node, a: SimpleNamespace) -> tuple[int, fx.Node | None] | None:
    names, out = _letters(a.equation)
    made = [letter for letter in names[1] if letter in out and letter not in names[0]]
    return (out.index(made[0]), None) if len(names) == 2 and len(made) == 1 else None


def _linear_of_constant(c: Constants, node: fx.Node, a: SimpleNamespace) -> int | None:
    """A linear layer over the channels."""
    dim = c.only(node, a.input)
    return dim if dim == c.rank(a.input) - 1 and c.rank(a.weight) == 2 else None


register_rule(
    "linear.default",
    Rule(
        _linear,
        kind="linear",
        constant=_linear_of_constant,
        empty=_empty_linear,
        module=Layer((nn.Linear,), _of_linear, affine()),
    ),
)
register_rule(
    "bilinear.default", Rule(_bilinear, module=Layer((nn.Bilinear,), _of_bilinear, affine(), ("input1", "input2")))
)
register_rule(
    "_grouped_mm.default transformers::grouped_mm_fallback.default",
    Rule(_grouped_mm, twin=_twin_grouped_mm, statistic=True),
)
register_rule(
    "matmul.default mm.default bmm.default mv.default dot.default vdot.default", Rule(_matmul, empty=_empty_matmul)
)
register_rule("addmm.default", Rule(_addmm, empty=_empty_addmm))
register_rule("baddbmm.default", Rule(_addmm))
register_rule("einsum.default", Rule(_einsum, empty=_empty_einsum))

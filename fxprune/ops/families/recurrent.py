"""LSTM, GRU and plain recurrent layers and cells: the gates' blocks share one hidden axis."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from torch import Tensor, fx, nn

from fxprune.algebra import axes as ax
from fxprune.algebra.axes import Axes, Axis
from fxprune.ops.layers import Recurrent
from fxprune.ops.modules import Layer, Site
from fxprune.ops.registry import register_rule
from fxprune.ops.rule import Rule
from fxprune.ops.tracer import Tracer
from fxprune.ops.twin import Twin

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@dataclass(frozen=True, slots=True)
class Weights:
    """The parameters of one layer in one direction."""

    inputs: fx.Node  # [gates * hidden, in]
    hidden: fx.Node  # [gates * hidden, out]
    biases: tuple[fx.Node, ...]  # [gates * hidden] each
    projection: fx.Node | None  # [out, hidden]


def _gates(node: fx.Node) -> int:
    return next(count for name, count in _GATES.items() if f".{name}" in str(node.target))


def layers_of(a: SimpleNamespace) -> Iterator[list[Weights]]:
    """Yields the weights of each layer by direction."""
    directions = 2 if a.bidirectional else 1
    size = len(a.params) // (a.num_layers * directions)
    biases = 2 if a.has_biases else 0
    sets = [a.params[i : i + size] for i in range(0, len(a.params), size)]
    made = [Weights(s[0], s[1], tuple(s[2 : 2 + biases]), s[-1] if size > 2 + biases else None) for s in sets]
    for i in range(0, len(made), directions):
        yield made[i : i + directions]


def _blocks(t: Tracer, node: fx.Node, axis: Axis, gates: int, hidden: int) -> Axis:
    """Returns the hidden axis of rows that hold one block for each gate."""
    gate, inner = t.reshape(node, [axis], [gates, hidden])
    t.freeze(node, gate, "the gates")
    return inner


def _cell(t: Tracer, node: fx.Node, w: Weights, gates: int, x: Axis, out: Axis, cell: Axis) -> tuple[Axis, Axis]:
    """Relates one layer's weights with its input and its states; returns the axes of output and cell state."""
    hidden = t.shape(w.inputs)[0] // gates
    for part in (w.inputs, w.hidden, *w.biases):
        axis = t.axes(part, node)[0]
        cell = t.relate(node, cell, _blocks(t, node, axis, gates, hidden))
    t.relate(node, x, t.axes(w.inputs, node)[1])
    out = t.relate(node, out, t.axes(w.hidden, node)[1])
    if w.projection is None:
        out = cell = t.relate(node, out, cell)
    else:
        rows, columns = t.axes(w.projection, node)
        out, cell = t.relate(node, out, rows), t.relate(node, cell, columns)
        # the op tells a projection by the widths of its two states
        t.freeze(node, cell, "a cell that must stay wider than its projection")
    return out, cell


def _multiply(t: Tracer, node: fx.Node, at: tuple[fx.Node, int], axis: Axis, weight: fx.Node, steps: int) -> None:
    """Records a product with a weight ``[rows, axis]`` at each of ``steps``; ``at`` is a value that has the axis."""
    t.contract(node, at, axis, t.axes(weight, node), steps * math.prod(t.example(weight)), weight if axis else None)


def _states(a: SimpleNamespace) -> list[fx.Node]:
    return [a.hx] if isinstance(a.hx, fx.Node) else list(a.hx)


def _recurrent(t: Tracer, node: fx.Node, a: SimpleNamespace) -> list[Axes]:
    """Before: x[b, n, i], states[l, b, h], weights[(gates x h), i] and [(gates x h), h].  After: [b, n, h], [l, b, h].

    The states of all layers and directions are one tensor, so all have one hidden axis: a unit goes from all of them.
    """
    gates, states = _gates(node), _states(a)
    *lead, x = t.axes(a.input, node)
    t.freeze(node, ax.joined(lead), "batch or time")
    stacks = [t.axes(state, node) for state in states]
    for axes in stacks:
        t.freeze(node, ax.joined(axes[:-1]), "layers or batch")
    out, cell = stacks[0][-1], stacks[-1][-1]
    steps = math.prod(t.example(a.input)[:-1])
    given = x
    for layer in layers_of(a):
        for weights in layer:
            out, cell = _cell(t, node, weights, gates, x, out, cell)
        for w in layer:
            at = (a.input, len(lead)) if x is given else (states[0], len(stacks[0]) - 1)
            # two directions are joined by the op itself: no value has that axis
            single = x is given or len(layer) == 1
            _multiply(t, node, at, x if single else (), w.inputs, steps)
            _multiply(t, node, (states[0], len(stacks[0]) - 1), out, w.hidden, steps)
            if w.projection is not None:
                _multiply(t, node, (states[-1], len(stacks[-1]) - 1), cell, w.projection, steps)
        x = (*ax.fixed(len(layer)), *out)
    if any(ax.is_labelled(axis) for axis in (given, out, cell)):
        t.statistic(node)
    return [(*lead, x), (*stacks[0][:-1], out), *((*axes[:-1], cell) for axes in stacks[1:])]


def _twin(t: Twin, node: fx.Node, a: SimpleNamespace) -> tuple[Tensor, ...]:
    """Runs the layer on what stays, and puts the results back at their places."""

    def part(operand: fx.Node) -> Tensor:
        return t.gather(t.value(operand), list(enumerate(t.axes(operand, node))))

    states = [part(state) for state in _states(a)]
    parts = {
        "input": part(a.input),
        "hx": states[0] if isinstance(a.hx, fx.Node) else states,
        "params": [part(weight) for weight in a.params],
    }
    made: Any = t.axes(node)
    results = zip(t.run(node, **t.given(a) | parts), made, strict=True)
    return tuple(t.scatter(result, [(result.dim() - 1, axes[-1])]) for result, axes in results)


def _one_cell(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes | list[Axes]:
    """Before: x[b, i], states[b, h].  After: [b, h] for each state."""
    states = _states(a)
    stacks = [t.axes(state, node) for state in states]
    *lead, x = t.axes(a.input, node)
    biases = tuple(bias for bias in (a.b_ih, a.b_hh) if bias is not None)
    out, _ = _cell(t, node, Weights(a.w_ih, a.w_hh, biases, None), _gates(node), x, stacks[0][-1], stacks[-1][-1])
    lead = [t.relate(node, axis, stacks[0][d]) for d, axis in enumerate(lead)]
    steps = math.prod(t.example(a.input)[:-1])
    _multiply(t, node, (a.input, len(lead)), x, a.w_ih, steps)
    _multiply(t, node, (states[0], len(lead)), out, a.w_hh, steps)
    return [(*lead, out) for _ in states] if len(states) > 1 else (*lead, out)


def _module(op: str, cls: type[nn.Module]) -> Layer:
    def build(site: Site) -> nn.Module | None:
        if site.values["train"]:
            return None
        names = ("has_biases", "num_layers", "dropout", "bidirectional", "batch_first")
        return Recurrent(op, tuple(site.tensors), **{name: site.values[name] for name in names})

    return Layer((cls,), build, {"params": "_flat_weights_names"}, ("input", "hx"), borrow=False)


for _name, _cls in (("lstm", nn.LSTM), ("gru", nn.GRU), ("rnn_tanh", nn.RNN), ("rnn_relu", nn.RNN)):
    register_rule(
        f"{_name}.input", Rule(_recurrent, twin=_twin, statistic=True, kind="recurrent", module=_module(_name, _cls))
    )
    register_rule(f"{_name}_cell.default", Rule(_one_cell))

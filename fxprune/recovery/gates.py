"""The gates of recurrent layers: what they read through time, of the layer below and of their own state.

A gate is a linear layer over ``x_t`` and ``h_{t-1}``, added before its nonlinearity; so what removed columns gave to it can
go to the kept columns and to the gates' own biases, as in any linear layer. The sequences inside of a stack of layers are no
values of the graph: the first layers of the stack, run alone, give them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxprune.algebra.channels import Mask
from fxprune.coupling.selection import Selection
from fxprune.ops.families.recurrent import layers_of
from fxprune.ops.registry import bind, is_kind
from fxprune.recovery.affine import Affine, own_parameter
from fxprune.recovery.consumers import Consumer, Draw, Home


@dataclass(frozen=True, slots=True, eq=False)
class Gates(Consumer):
    """One weight of one layer in one direction of a recurrent stack.

    Attributes:
        layer: which layer of the stack.
        direction: 0 forward, 1 backward.
        of_state: whether it reads the layer's own state, not the layer below.
    """

    layer: int
    direction: int
    of_state: bool

    def samples(self, shape: Sequence[int]) -> int:
        """Returns how many samples an input of this shape holds."""
        return int(np.prod(shape[:-1]))

    def read(self, values: Mapping[fx.Node, Any], memory_limit: int, draw: Draw) -> Tensor:
        """Returns chosen steps of what the gates read, ``[rows, 1, columns]``, from the values alive at the layer's node."""
        a = SimpleNamespace(**fx.map_arg(vars(self.affine.arguments), values.__getitem__))
        x = self._states(a) if self.of_state else self._below(a)
        return self.columns(x, self.choose(x.shape, memory_limit, draw))

    def _below(self, a: SimpleNamespace) -> Tensor:
        """Returns the sequence that the layer reads, ``[batch, time, columns]`` or time first."""
        found: Tensor = _run(self.node, a, self.layer) if self.layer else a.input
        return found

    def _states(self, a: SimpleNamespace) -> Tensor:
        """Returns the state before each step, ``[batch, time, columns]`` or time first."""
        directions, time = 2 if a.bidirectional else 1, 1 if a.batch_first else 0
        own = _run(self.node, a, self.layer + 1).chunk(directions, -1)[self.direction]
        first = (a.hx if isinstance(a.hx, Tensor) else a.hx[0])[self.layer * directions + self.direction]
        steps = own.shape[time] - 1
        past = [first.unsqueeze(time), own.narrow(time, 0, steps)]
        return torch.cat(past if not self.direction else [own.narrow(time, 1, steps), past[0]], time)


def _run(node: fx.Node, a: SimpleNamespace, layers: int) -> Tensor:
    """Returns what the first layers of a stack give: their sequence."""
    many = layers * (2 if a.bidirectional else 1)
    states = a.hx[:many] if isinstance(a.hx, Tensor) else [state[:many] for state in a.hx]
    cut = {
        "hx": states,
        "params": a.params[: len(a.params) // a.num_layers * layers],
        "num_layers": layers,
        "train": False,
    }
    assert callable(node.target)
    sequence: Tensor = node.target(**vars(a) | cut)[0]
    return sequence


def find_gates(selection: Selection) -> tuple[list[Gates], list[str]]:
    """Returns the weights of recurrent layers whose input loses columns, and notes on those that are left alone."""
    found: list[Gates] = []
    notes: list[str] = []
    for node in selection.coupling.captured.module.graph.nodes:
        for weight, bias, place in _weights(node) if is_kind(node, "recurrent") else ():
            columns = selection.slicer.mask(selection.coupling.values[weight][1])
            if columns is None:
                continue
            if len(weight.users) > 1:
                notes.append(f"{weight.target}: used more than once")
            else:
                found.append(_gates(selection, node, (weight, bias), columns, place))
    return found, notes


def _weights(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node | None, tuple[int, int, bool]]]:
    """Yields the weight and the bias of each product, with its layer, its direction, and whether it reads the state."""
    for layer, directions in enumerate(layers_of(bind(node))):
        for direction, w in enumerate(directions):
            biases = w.biases or (None, None)
            yield w.inputs, biases[0], (layer, direction, False)
            yield w.hidden, biases[1], (layer, direction, True)


def _gates(
    selection: Selection,
    node: fx.Node,
    parameters: tuple[fx.Node, fx.Node | None],
    columns: Mask,
    place: tuple[int, int, bool],
) -> Gates:
    weight, bias = parameters
    rows = selection.slicer.mask(selection.coupling.values[weight][0])
    outputs = np.ones(selection.coupling.captured.info[weight].shape[0], bool) if rows is None else rows
    own = own_parameter(selection.coupling, bias)
    home = None if own is None else Home(own, 1)
    name = str(weight.target)
    a = bind(node)
    return Gates(node, name, own, Affine(a, a.input, bias), 1, columns[None], outputs[None], home, *place)

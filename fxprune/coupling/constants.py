"""Constants: what a layer without inputs leaves, one value for each channel, followed as far as ops keep it so."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx

from fxprune._base.names import fetch
from fxprune.algebra.axes import size_of
from fxprune.capturing.captured import TensorInfo
from fxprune.coupling.coupling import Coupling
from fxprune.ops.constants import Constants
from fxprune.ops.registry import bind, blamed, rule_of
from fxprune.ops.slicer import Slicer
from fxprune.ops.twin import Twin, in_precision


def channel_dims(coupling: Coupling, slicer: Slicer, emptied: Iterable[fx.Node] = ()) -> dict[fx.Node, int]:
    """Returns the nodes whose value is one constant for each channel, with the dimension of the channels.

    They begin at contractions with a weight that have nothing left to sum, and at those in ``emptied``; what those add
    is the constant.
    """
    found: dict[fx.Node, int] = {}
    starts = {
        c.node for c in coupling.contractions if c.weight is not None and size_of(c.axis) and not slicer.count(c.axis)
    }.union(emptied)
    constants = Constants(coupling.captured.info, found)
    weights: set[fx.Node] = set()  # and what is computed from them alone
    for node in coupling.captured.module.graph.nodes if starts else ():
        if node.op == "get_attr" or (node.all_input_nodes and weights.issuperset(node.all_input_nodes)):
            weights.add(node)
        elif node.op == "call_function":
            empty = _empty(constants, node) if node in starts else None
            dim = empty[0] if empty else None if node in starts else _follow(constants, node, weights)
            if dim is not None:
                found[node] = dim
    return found


def _empty(constants: Constants, node: fx.Node) -> tuple[int, fx.Node | None] | None:
    """Returns what a contraction with nothing left to sum gives: where its channels lie, and what is added."""
    rule = rule_of(node.target)
    return None if rule is None or rule.empty is None else rule.empty(constants, node, bind(node))


def _follow(constants: Constants, node: fx.Node, weights: set[fx.Node]) -> int | None:
    """Returns where the channels lie if a constant goes in, beside it nothing but weights, and a constant comes out."""
    found = constants.found
    sources = [s for s in node.all_input_nodes if constants.shape(s) is not None]
    if not any(s in found for s in sources) or not all(s in found or s in weights for s in sources):
        return None
    if node.target is operator.getitem:
        info = constants.info.get(node)
        return found[sources[0]] if isinstance(info, TensorInfo) and info.dtype.is_floating_point else None
    rule = rule_of(node.target)
    if rule is None or constants.shape(node) is None:
        return None
    a = bind(node)
    if rule.moves is not None:
        return rule.moves(constants, node, a) if next(iter(vars(a).values())) in found else None
    return rule.constant(constants, node, a) if rule.constant is not None else None


class ConstantValues:
    """The values of constants in float64: every dimension of size one but the channels', zero where those are gone.

    Args:
        coupling: of the captured graph.
        slicer: what stays.
        constant: what `channel_dims` returned.
        tensors: replacements of parameters and buffers, by name.
    """

    def __init__(
        self, coupling: Coupling, slicer: Slicer, constant: Mapping[fx.Node, int], tensors: Mapping[str, Tensor]
    ) -> None:
        self._coupling = coupling
        self._constants = Constants(coupling.captured.info, constant)
        self._tensors = tensors
        self._twin = Twin(**vars(slicer), read=self.of)
        self._known: dict[fx.Node, Any] = {}

    def of(self, node: fx.Node) -> Any:
        """Returns the value of a constant node, or of what is computed from parameters alone; a tuple for several."""
        if node not in self._known:
            self._known[node] = self._parameter(node) if node.op == "get_attr" else self._result(node)
        return self._known[node]

    def _parameter(self, node: fx.Node) -> Tensor:
        name = str(node.target)
        value = self._tensors[name] if name in self._tensors else fetch(self._coupling.captured.module, name)
        value = in_precision(value.detach(), torch.float64)
        axes = list(enumerate(self._coupling.values[node] or ()))
        return self._twin.scatter(self._twin.gather(value, axes), axes)

    def _result(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            value, index = self.of(node.all_input_nodes[0]), node.args[1]
            # of an op that moves its operand all parts have the same value
            return value[index] if isinstance(value, (tuple, list)) and isinstance(index, int) else value
        rule, a = rule_of(node.target), bind(node)
        if node in self._constants.found:
            if any(c.node is node and not self._twin.count(c.axis) for c in self._coupling.contractions):
                return self._empty(node)
            if rule is not None and rule.moves is not None:
                return self._placed(node, self.of(next(iter(vars(a).values()))))
        arguments = {name: in_precision(value, torch.float64) for name, value in vars(a).items()}
        if rule is not None and rule.twin is not None:
            with blamed(node, "twin", a):
                return rule.twin(self._twin, node, SimpleNamespace(**arguments))
        return self._twin.run(node, **self._twin.value(arguments))

    def _empty(self, node: fx.Node) -> Tensor:
        found = _empty(self._constants, node)
        assert found is not None, f"{node}: it began a branch of constants"
        dim, added = found
        if added is not None:
            return self._placed(node, self.of(added))
        device = next((p.device for p in self._coupling.captured.module.parameters()), torch.device("cpu"))
        size = (self._constants.shape(node) or ())[dim]
        return self._placed(node, torch.zeros(size, dtype=torch.float64, device=device))

    def _placed(self, node: fx.Node, value: Tensor) -> Tensor:
        dim = self._constants.found[node]
        return value.reshape([-1 if d == dim else 1 for d in range(self._constants.rank(node))])

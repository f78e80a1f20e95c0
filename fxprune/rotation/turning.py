"""Turning: the tensors of a model whose streams are given in other bases, and the proof that it is the same model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxprune._base.names import fetch, layer_of
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.rotation.conducting import MASK, Conduction, Spot, turned
from fxprune.rotation.gains import Gain
from fxprune.rotation.streams import StreamError
from fxprune.twin.interpreter import Run


@dataclass(slots=True, eq=False)
class Turning:
    """New values of tensors, by what reads them.

    Attributes:
        values: (name, op) -> the tensor that the op is to read, ``[...]`` as it was, float64.
    """

    coupling: Coupling
    values: dict[tuple[str, fx.Node], Tensor] = field(default_factory=dict)

    def of(self, node: fx.Node, user: fx.Node) -> Tensor:
        """Returns what an op is to read of a parameter, ``[...]``."""
        key = (str(node.target), user)
        found = self.values.get(key)
        return fetch(self.coupling.captured.module, key[0]).detach().double() if found is None else found

    def turn(self, found: Conduction, level: Mapping[Spot, Tensor], basis: Tensor) -> None:
        """Gives a stream in another basis, ``[channels, channels]``.

        Raises:
            StreamError: a tensor cannot hold what it would have to; some values may be changed by then.
        """
        for spot, own in level.items():
            if spot.user is not None:
                value = _scaled(self.of(spot.node, spot.user), spot.dim, own)
                self._set(spot.node, spot.user, turned(value, spot.dim, basis))
        for out, gain in found.gains:
            self._make_neutral(out, gain, level[out], basis)

    def _set(self, node: fx.Node, user: fx.Node, value: Tensor) -> None:
        if not value.isfinite().all():
            raise StreamError(f"{node.target}: a gain of zero cannot be taken over by others")
        self.values[str(node.target), user] = value

    def _make_neutral(self, out: Spot, gain: Gain, level: Tensor, basis: Tensor) -> None:
        for operand, wanted in gain.neutral.items():
            source, user = _source(operand, out.node)
            if operand is gain.holder:
                assert gain.offset is not None
                self._set(source, user, gain.sign * (_scaled(gain.offset, 0, level) @ basis))
            else:
                self._set(source, user, self._that_gives(operand, wanted, source))

    def _that_gives(self, operand: fx.Node, wanted: Tensor, source: fx.Node) -> Tensor:
        """Returns a parameter of which a gain is made, ``[...]``, such that the gain is what is wanted.

        Raises:
            StreamError: a number added to each value of the parameter does not bring it there.
        """
        now, value = (_value(self.coupling, each, {}) for each in (operand, source))
        if now.numel() == value.numel():
            value = value + (wanted - now).reshape(value.shape)
            if torch.allclose(_value(self.coupling, operand, {source: value}), wanted, rtol=0.0, atol=1e-12):
                return value
        raise StreamError(f"{source.target}: a gain that is computed from it")


def _scaled(value: Tensor, dim: int, level: Tensor) -> Tensor:
    """Returns a value without its level; where that is zero, and the value as well, zero."""
    shape = (-1, *[1] * (value.dim() - 1 - dim))
    return torch.where((value == 0) & (level.reshape(shape) == 0), 0.0, value / level.reshape(shape))


def _source(operand: fx.Node, user: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Returns the parameter that a gain is made of, and the op that reads it.

    Raises:
        StreamError: there are several.
    """
    while operand.op != "get_attr":
        user, sources = operand, operand.all_input_nodes
        if len(sources) != 1:
            raise StreamError(f"{operand.target}: a gain is made of several tensors")
        operand = sources[0]
    return operand, user


def _value(coupling: Coupling, node: fx.Node, known: Mapping[fx.Node, Tensor]) -> Tensor:
    """Returns a value that depends on no input, ``[...]``, float64; ``known`` is what stands for some."""
    if node in known:
        return known[node]
    sources = {source: _value(coupling, source, known) for source in node.all_input_nodes}
    found: Tensor = Run(Selection.nothing(coupling), torch.float64).step(node, sources, iter(()))
    return found


def by_name(turning: Turning) -> dict[str, Tensor]:
    """Returns the new tensors, ``[...]`` by name: a tied tensor that its readers need in several bases under several names.

    Raises:
        StreamError: one tensor is read in several bases, and has no name for each.
    """
    ties, graph = turning.coupling.captured.ties, turning.coupling.captured.module.graph
    result: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for name, _ in turning.values):
        readers = [
            (user, turning.of(node, user))
            for node in graph.nodes
            if node.op == "get_attr" and node.target == name
            for user in node.users
        ]
        first = readers[0][1]
        if all(torch.allclose(first, value, rtol=1e-9, atol=0.0) for _, value in readers):
            result[name] = first
            continue
        names = {layer_of(each): each for each in (name, *(other for other, own in ties.items() if own == name))}
        for user, value in readers:
            own = names.get(user.meta.get("module", ""))
            if own is None or (own in result and not torch.allclose(result[own], value, rtol=1e-9, atol=0.0)):
                raise StreamError(f"{name}: ops that read it need it in several bases")
            result[own] = value
    return result


@torch.no_grad()
def apart(turning: Turning, inputs: Sequence[Tensor]) -> float:
    """Returns how far the outputs in the other bases are from the model's own, in float64, as a share of the largest of each.

    Args:
        turning: what gives them.
        inputs: flat, ``[...]`` as the graph takes them.
    """
    run = Run(Selection.nothing(turning.coupling), torch.float64)
    dense, values, feed = run(inputs), dict[fx.Node, Any](), iter(inputs)
    result: Any = ()
    for node in run.graph.nodes:
        own = {
            source: turning.values[str(source.target), node]
            for source in node.all_input_nodes
            if source.op == "get_attr" and (str(source.target), node) in turning.values
        }
        values[node] = result = run.step(node, {**values, **own}, feed)
        for source in run.last.get(node, ()):
            del values[source]
    return max((_apart(x, y) for x, y in zip(dense, result, strict=True)), default=0.0)


def _apart(x: Any, y: Any) -> float:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return 0.0 if not isinstance(x, Tensor) or torch.equal(x, y) else 1.0
    ordinary = x.abs() < MASK
    if not torch.equal(ordinary, y.abs() < MASK):
        return 1.0
    return float((x - y)[ordinary].abs().max() / x[ordinary].abs().max().clamp_min(1e-300)) if ordinary.any() else 0.0

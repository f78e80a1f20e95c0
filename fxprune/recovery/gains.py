"""Gains: what a norm over fewer channels gives is scaled back to what the original gives, channel by channel.

A norm's statistic changes where what goes had a part in it: by a factor of its own at each sample. With ``u`` the norm's
output without its bias over what stays and ``y`` the original's, least squares gives ``weight *= <u, y> / <u, u>``, and
with a bias the same of centred moments and ``bias = mean(y) - scale * mean(u)``.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxprune._base.names import fetch
from fxprune._base.ranks import gathered, world
from fxprune._base.ranks import own as shared_out
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.ops.registry import bind, is_kind, rule_of
from fxprune.recovery.consumers import Replacements
from fxprune.recovery.protocol import RecoveryContext
from fxprune.twin.interpreter import Run


@dataclass(frozen=True, slots=True, eq=False)
class Gain:
    """A norm that loses channels, and the weight and bias behind it.

    Attributes:
        node: where the weight is applied.
        weight: its name.
        bias: the bias' name, if the same op adds one.
        dim: where the weight's first dimension lies in the output, from the end.
        offset: what is added to the weight before it is applied.
    """

    node: fx.Node
    weight: str
    bias: str | None
    dim: int
    offset: float = 0.0


@dataclass(slots=True, eq=False)
class Fit:
    """Sums over samples, ``[weight]`` each, in float64."""

    count: int = 0
    sums: list[Tensor] = field(default_factory=list)

    def add(self, got: Tensor, wanted: Tensor, shape: torch.Size) -> None:
        """Takes in outputs without their bias and those wanted, ``[...]``, to be summed to the weight's shape."""
        u, y = got.double(), wanted.double()
        new = [x.sum_to_size(shape) for x in (u, y, u * u, u * y)]
        self.count += u.numel() // max(shape.numel(), 1)
        self.sums = [a + b for a, b in zip(self.sums, new, strict=True)] if self.sums else new

    def share(self) -> None:
        """Takes in what other processes have seen."""
        every, self.count, self.sums = gathered((self.count, self.sums)), 0, []
        for count, sums in every:
            if sums:
                self.count += count
                self.sums = [a + b for a, b in zip(self.sums, sums, strict=True)] if self.sums else sums

    def scale(self, centred: bool) -> tuple[Tensor, Tensor]:
        """Returns what the weight is multiplied by, and the bias, ``[weight]`` each; 1 where nothing varies."""
        u, y, uu, uy = (x / max(self.count, 1) for x in self.sums)
        if centred:
            uu, uy = uu - u * u, uy - u * y
        tiny = torch.finfo(uu.dtype).eps * uu.abs().max().clamp_min(torch.finfo(uu.dtype).tiny)
        scale = torch.where(uu > tiny, uy / uu.clamp_min(tiny), 1.0)
        return scale, y - scale * u


class Gains:
    """The norms of a graph that lose channels, fitted one by one.

    Args:
        selection: what goes.
        changed: takes the new weights and biases.
    """

    def __init__(self, selection: Selection, changed: Replacements) -> None:
        self._changed = changed
        self._pruned = Run(selection.with_tensors(changed.tensors))
        self.way, self.of = gains_of(selection)

    def observe(self, fit: Fit, gain: Gain, got: Any, wanted: Any) -> None:
        """Takes in one batch of outputs, ``[...]``: the pruned model's and the original's."""
        weight = self._changed.value(gain.weight)
        if gain.bias is not None:
            got = got - self._placed(self._changed.value(gain.bias), gain).to(got.dtype)
        fit.add(got, wanted, self._placed(weight, gain).shape)

    def apply(self, fit: Fit, gain: Gain) -> set[str]:
        """Changes weight and bias by what was observed; returns their names."""
        if world() > 1:
            fit.share()
        if not fit.count:
            return set()
        scale, bias = fit.scale(gain.bias is not None)
        weight = self._changed.value(gain.weight)
        if not bool(scale.isfinite().all() and bias.isfinite().all()):
            return set()
        fitted = (weight.double() + gain.offset) * scale.reshape(weight.shape) - gain.offset
        self._changed.tensors[gain.weight] = fitted.to(weight.dtype)
        if gain.bias is None:
            return {gain.weight}
        self._changed.tensors[gain.bias] = bias.reshape(weight.shape).to(weight.dtype)
        return {gain.weight, gain.bias}

    def _placed(self, value: Tensor, gain: Gain) -> Tensor:
        """Returns a weight as it is applied, ``[..., *1]``."""
        return value.reshape(*value.shape, *[1] * (-gain.dim - value.dim()))

    def beside(
        self, fits: Mapping[Gain, Fit], node: fx.Node, values: Mapping[fx.Node, Any], own: dict[fx.Node, Any]
    ) -> None:
        """Follows a dense pass: between a statistic and its gain, values without what goes are computed beside it.

        Args:
            fits: what was observed, by gain.
            node: where the dense pass is.
            values: its values.
            own: the values without what goes; changed.
        """
        if node in self.way:
            for source in node.all_input_nodes:
                if source.op == "get_attr":  # as it is replaced
                    own[source] = self._pruned.step(source, values, iter(()))
            own[node] = self._pruned.step(node, {**values, **own}, iter(()))
        if node in self.of:
            self.observe(fits[self.of[node]], self.of[node], own[node], values[node])


def fit_gains(context: RecoveryContext, changed: Replacements) -> None:
    """Gives norms that lose channels the weights, and biases, that fit what the dense model feeds them, in one pass.

    Args:
        context: what goes, and the inputs.
        changed: takes the new tensors.
    """
    gains = Gains(context.selection, changed)
    fits = {gain: Fit() for gain in gains.of.values()}
    dense = Run(context.dense)
    for _, batch in shared_out(context.inputs) if fits else ():
        own: dict[fx.Node, Any] = {}
        for node, values in dense.steps(batch):
            gains.beside(fits, node, values, own)
            for source in dense.last.get(node, ()):
                own.pop(source, None)
    for gain, fit in fits.items():
        gains.apply(fit, gain)


def gains_of(selection: Selection) -> tuple[set[fx.Node], dict[fx.Node, Gain]]:
    """Returns what lies between statistics that lose channels and the next layers, and the gains where such ways end."""
    coupling, way, found = selection.coupling, set[fx.Node](), dict[fx.Node, Gain]()
    for node in coupling.captured.module.graph.nodes if selection.removed.any() else ():
        if node.op != "call_function" or not (_loses(selection, node) or _follows(node, way - found.keys())):
            continue
        way.add(node)
        gain = _gain(coupling, node, way)
        if gain is not None:
            found[node] = gain
    return way, found


def _follows(node: fx.Node, way: set[fx.Node]) -> bool:
    passes = is_kind(node, "elementwise", "addition") or node.target is operator.getitem
    return passes and not way.isdisjoint(node.all_input_nodes)


def _loses(selection: Selection, node: fx.Node) -> bool:
    """Returns whether a norm, a mean or a variance loses channels that it looks at."""
    rule, coupling = rule_of(node.target), selection.coupling
    if node not in coupling.statistics or rule is None or not (rule.kind == "norm" or rule.factor or rule.zeros):
        return False
    axes = coupling.values.get(node.all_input_nodes[0])
    return any(selection.slicer.changed(axis) for axis in axes or ())


def _gain(coupling: Coupling, node: fx.Node, way: set[fx.Node]) -> Gain | None:
    """Returns the gain that a node applies, if it is a parameter that nobody else reads."""
    rule = rule_of(node.target)
    if rule is None or not (rule.kind == "norm" or rule.scales):
        return None
    a, rank = bind(node), len(coupling.captured.info[node].shape)
    if rule.kind == "norm":
        weight, bias = _own(coupling, a.weight), _own(coupling, getattr(a, "bias", None))
        if weight is None or (bias is None and getattr(a, "bias", None) is not None):
            return None
        return Gain(node, weight, bias, 1 - rank if hasattr(a, "num_groups") else -len(a.normalized_shape))
    held = [found for source in node.all_input_nodes if source not in way and (found := _applied(coupling, source))]
    if len(held) != 1:
        return None
    name, offset = held[0]
    shape = fetch(coupling.captured.module, name).shape
    return Gain(node, name, None, -len(shape), offset) if 0 < len(shape) <= rank else None


def _applied(coupling: Coupling, node: fx.Node) -> tuple[str, float] | None:
    """Returns the name of a parameter that one op alone reads, and what is added to it before: ``1 + weight`` is one as well."""
    offset = 0.0
    if is_kind(node, "addition") and len(node.users) == 1 and isinstance((a := bind(node)).other, (int, float)):
        node, offset = a.self, float(a.other * a.alpha)
    name = _own(coupling, node)
    return None if name is None else (name, offset)


def _own(coupling: Coupling, node: Any) -> str | None:
    """Returns the name of a tensor that one op alone reads and that may be changed."""
    known = isinstance(node, fx.Node) and node.op == "get_attr" and node.target in coupling.captured.persistent
    return str(node.target) if known and len(node.users) == 1 else None

"""Means that count what went as zeros: in the original's class they run over what stays, and gain and eps make up for it.

The graph has ``x * rsqrt(share * m + eps) * weight`` with ``m`` the mean over what stays. That is ``share ** -0.5`` times
``x * rsqrt(m + eps / share)``, and the weight takes the factor: what the value scales with to the power of -0.5 it may be given
or not. Where no weight follows, or the value scales with the mean in no such way, what the mean runs over has to stay whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune._base.names import fetch
from fxprune._base.pages import written
from fxprune.algebra.axes import Axis, is_labelled
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.ops.registry import bind, is_kind, rule_at
from fxprune.recovery.gains import Gain, gains_of


@dataclass(frozen=True, slots=True)
class Number:
    """A number that a module's forward puts into an op, and what it becomes."""

    module: str
    old: float
    new: float


@dataclass(frozen=True, slots=True)
class Behind:
    """What lies behind a statistic.

    Attributes:
        gain: the weight that scales what is made of it.
        power: to which power that scales with the statistic.
        added: (module, number): that is added to the statistic on the way.
    """

    gain: Gain
    power: float
    added: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Statistics:
    """What makes up for statistics over what stays.

    Attributes:
        gains: (gain, what it is multiplied by).
        numbers: that change.
    """

    gains: tuple[tuple[Gain, float], ...]
    numbers: tuple[Number, ...]


def statistics_of(selection: Selection) -> Statistics:
    """Returns what a class needs whose means run over what stays, where the graph's count all."""
    _, gains = gains_of(selection)
    factors: list[tuple[Gain, float]] = []
    numbers = list(_edited(selection))
    for node in selection.coupling.statistics if selection.removed.any() else ():
        rule = rule_at(node)
        if rule is None or rule.factor is None or rule.gains is not None:
            continue
        share = rule.factor(selection.slicer, node, bind(node))
        behind = None if share in (0.0, 1.0) else _behind(node, gains)
        if behind is not None:
            factors.append((behind.gain, share**behind.power))
            numbers += [Number(module, old, old / share) for module, old in behind.added]
    return Statistics(tuple(factors), tuple(numbers))


def uncounted(coupling: Coupling) -> Iterator[Axis]:
    """Yields the axes over which a statistic runs that counts all, where nothing in the class could make up for those that go."""
    every = np.zeros(len(coupling.channels), bool)
    every[coupling.units] = True
    _, gains = gains_of(Selection(coupling, every))
    for node in coupling.statistics:
        rule = rule_at(node)
        if rule is None or not (rule.factor or rule.zeros) or (rule.gains and node in gains):
            continue
        if rule.zeros or rule.gains or _behind(node, gains) is None:
            left = coupling.values[node]
            kept = {id(factor) for axis in (left if isinstance(left, tuple) else ()) for factor in axis}
            read: tuple[Axis, ...] = coupling.values[node.all_input_nodes[0]] or ()
            yield from (axis for axis in read if is_labelled(axis) and not {id(factor) for factor in axis} <= kept)


def made_up(home: nn.Module, found: Statistics) -> None:
    """Has a restored model make up for its statistics."""
    with torch.no_grad():
        for gain, factor in found.gains:
            weight: Tensor = fetch(home, gain.weight)
            written(weight, ((weight.double() + gain.offset) * factor - gain.offset).to(weight.dtype))
    for number in found.numbers:
        attributes = vars(home.get_submodule(number.module))
        names = [name for name, value in attributes.items() if type(value) is float and value == number.old]
        for name in names[:1]:
            attributes[name] = number.new


def _behind(node: fx.Node, gains: Mapping[fx.Node, Gain]) -> Behind | None:
    """Follows a statistic to the one gain that scales all that is made of it, None if there is none."""
    powers, added, ends = {node: 1.0}, [], []
    for user in _later(node):
        sources = [source for source in user.all_input_nodes if source in powers]
        if user.op != "call_function" or not sources:
            continue
        power = _power(user, powers)
        if power is None:
            return None
        if user in gains:
            ends.append((gains[user], power))
            continue
        powers[user] = power
        if is_kind(user, "addition"):
            added.append((str(user.meta.get("module") or ""), float(bind(user).other)))
    if len(ends) != 1 or any(reader not in gains and reader not in powers for x in powers for reader in x.users):
        return None
    return Behind(*ends[0], tuple(added))


def _later(node: fx.Node) -> Iterator[fx.Node]:
    while node.op != "output":
        node = node.next
        yield node


def _power(node: fx.Node, powers: Mapping[fx.Node, float]) -> float | None:
    """Returns to which power a node scales with what its operands scale with; None where it does not."""
    arguments, rule = bind(node), rule_at(node)
    if is_kind(node, "addition"):
        number = arguments.other if arguments.self in powers else None
        return powers[arguments.self] if isinstance(number, (int, float)) and powers[arguments.self] == 1.0 else None
    if rule is not None and rule.conducts:
        return powers.get(node.all_input_nodes[0])
    if rule is None or not rule.powers:
        return None
    total = 0.0
    for name, value in vars(arguments).items():
        if isinstance(value, fx.Node) and value in powers:
            power = rule.powers.get(name)
            power = getattr(arguments, power) if isinstance(power, str) else power
            if not isinstance(power, (int, float)):
                return None
            total += powers[value] * power
    return total


def _edited(selection: Selection) -> Iterator[Number]:
    """Yields the numbers that slicing changes in an op."""
    for node in selection.coupling.statistics if selection.removed.any() else ():
        rule = rule_at(node)
        if rule is None or rule.slice is None or rule.factor is None:
            continue
        arguments = bind(node)
        for name, new in rule.slice(selection.slicer, node, arguments).arguments.items():
            old = getattr(arguments, name)
            if isinstance(old, float) and isinstance(new, float) and old != new:
                yield Number(str(node.meta.get("module") or ""), old, new)

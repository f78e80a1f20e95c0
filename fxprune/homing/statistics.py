"""Means that count what went as zeros: in the original's class they run over what stays, and gain and eps make up for it.

The graph has ``x * rsqrt(share * m + eps) * weight`` with ``m`` the mean over what stays: that is
``x * rsqrt(m + eps / share) * (weight / sqrt(share))``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune._base.names import fetch
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.ops.registry import bind, is_kind, rule_of
from fxprune.recovery.gains import Gain, gains_of


@dataclass(frozen=True, slots=True)
class Number:
    """A number that a module's forward puts into an op, and what it becomes."""

    module: str
    old: float
    new: float


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
        rule = rule_of(node.target)
        if rule is None or rule.factor is None or rule.gains is not None:
            continue
        share = rule.factor(selection.slicer, node, bind(node))
        gain = None if share == 1.0 else _behind(node, gains)
        if gain is not None:
            factors.append((gain, share**-0.5))
            numbers += [Number(module, old, old / share) for module, old in _added(node)]
    return Statistics(tuple(factors), tuple(numbers))


def made_up(home: nn.Module, found: Statistics) -> None:
    """Has a restored model make up for its statistics."""
    with torch.no_grad():
        for gain, factor in found.gains:
            weight: Tensor = fetch(home, gain.weight)
            weight.copy_(((weight.double() + gain.offset) * factor - gain.offset).to(weight.dtype))
    for number in found.numbers:
        attributes = vars(home.get_submodule(number.module))
        names = [name for name, value in attributes.items() if type(value) is float and value == number.old]
        for name in names[:1]:
            attributes[name] = number.new


def _behind(node: fx.Node, gains: dict[fx.Node, Gain]) -> Gain | None:
    """Returns the first gain that lies behind a statistic, with nothing but elementwise work in between."""
    seen, queue = {node}, list(node.users)
    while queue:
        user = queue.pop(0)
        if user in gains:
            return gains[user]
        if user not in seen and is_kind(user, "elementwise", "addition"):
            seen.add(user)
            queue.extend(user.users)
    return None


def _added(node: fx.Node) -> Iterator[tuple[str, float]]:
    """Yields the numbers that are added to a statistic."""
    for user in node.users:
        if is_kind(user, "addition"):
            other: Any = bind(user).other
            if isinstance(other, float):
                yield str(user.meta.get("module") or ""), other


def _edited(selection: Selection) -> Iterator[Number]:
    """Yields the numbers that slicing changes in an op."""
    coupling: Coupling = selection.coupling
    for node in coupling.statistics if selection.removed.any() else ():
        rule = rule_of(node.target)
        if rule is None or rule.slice is None or rule.factor is None:
            continue
        arguments = bind(node)
        for name, new in rule.slice(selection.slicer, node, arguments).arguments.items():
            old = getattr(arguments, name)
            if isinstance(old, float) and isinstance(new, float) and old != new:
                yield Number(str(node.meta.get("module") or ""), old, new)

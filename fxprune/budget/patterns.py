"""Patterns: what a user may call layers and groups by, and which groups a pattern holds or reaches.

A layer goes by its own name, the names of the modules that hold it, and those of its tensors; a tied tensor by all of its names.
"""

from __future__ import annotations

import difflib
import fnmatch
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from torch import fx

from fxprune._base.errors import IgnoredPatternWarning, outside
from fxprune._base.names import layer_of
from fxprune.algebra.axes import is_labelled
from fxprune.budget.factors import carry
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.units import Group


def matches(names: Iterable[str], pattern: str) -> bool:
    """Returns whether a pattern is one of the names, brackets and all, or matches one as ``fnmatch`` does."""
    return any(name == pattern or fnmatch.fnmatchcase(name, pattern) for name in names)


def spellings(coupling: Coupling, tensor: str) -> set[str]:
    """Returns what a tensor may be called by: all its own names, those of its layer and of the modules that hold that."""
    found = [tensor, *(other for other, name in coupling.captured.ties.items() if name == tensor)]
    return {name for each in found for name in (each, *accumulate(each.split("."), "{}.{}".format))}


def names_of_layers(coupling: Coupling) -> dict[str, set[str]]:
    """Returns for each layer with tensors in the graph all that it may be called by."""
    found: dict[str, set[str]] = {}
    for node in coupling.values:
        if node.op == "get_attr":
            found.setdefault(layer_of(str(node.target)), set()).update(spellings(coupling, str(node.target)))
    return found


def makers_of(coupling: Coupling, group: Group) -> set[str]:
    """Returns the layers whose outputs the group's channels are; not those that they only pass: norms, depthwise convolutions."""
    axes = [coupling.axes[index] for index, _ in group.axes]
    made = {axis.layer for axis in axes if axis.makes and axis.layer in group.producers} | _looked_up(coupling, group)
    summed = {str(c.weight.target) for c in coupling.contractions if c.weight is not None and is_labelled(c.axis)}
    passed = {layer_of(tensor) for tensor in summed - {axis.tensor for axis in coupling.axes if axis.reads}}
    return (made - passed) or made or set(group.producers)


def _looked_up(coupling: Coupling, group: Group) -> set[str]:
    """Returns the embeddings among the layers that read a group: tied to the output, they make its channels as well."""
    sums: dict[str, set[fx.Node]] = {}
    for c in coupling.contractions:
        if c.weight is not None:
            sums.setdefault(str(c.weight.target), set()).add(c.node)
    reads = {axis.tensor for index, _ in group.axes if (axis := coupling.axes[index]).reads}
    users = {str(node.target): set(node.users) for node in coupling.values if node.op == "get_attr"}
    return {layer_of(tensor) for tensor in reads if users[tensor] - sums[tensor]}


def holding(coupling: Coupling, group: Group, patterns: Iterable[str], names: Mapping[str, set[str]]) -> set[str]:
    """Returns the patterns of ``ignore`` that hold a group: they match it, or a layer that makes it or that it passes."""
    layers = {*group.producers, *_looked_up(coupling, group)}
    spelled = {group.name}.union(*(names.get(layer, {layer}) for layer in layers))
    return {pattern for pattern in patterns if matches(spelled, pattern)}


def reaching(coupling: Coupling, group: Group, patterns: Sequence[str], names: Mapping[str, set[str]]) -> str | None:
    """Returns the pattern of ``ratios`` that a group falls under: its own name, or the first that matches all its makers.

    Of makers whose outputs are multiplied elementwise one is enough. A pattern with a kind, such as ``*:expert``, matches names of groups.
    """
    if group.name in patterns:
        return group.name
    makers = makers_of(coupling, group) or {group.name}
    for pattern in patterns:
        chosen = {maker for maker in makers if matches(names.get(maker, {maker}), pattern)}
        of_kind = ":" in pattern and matches([group.name], pattern)
        if of_kind or chosen == makers or (chosen and carry(coupling, chosen, makers)):
            return pattern
    return None


def taken(coupling: Coupling, ignore: Sequence[str], ratios: Sequence[str]) -> list[tuple[str, str, tuple[str, ...]]]:
    """Returns (option, pattern, names of groups) for each pattern: what ``ignore`` holds and what ``ratios`` reaches."""
    names = names_of_layers(coupling)
    held = {group.name: holding(coupling, group, ignore, names) for group in coupling.groups}
    free = [group for group in coupling.groups if not held[group.name]]
    own = [pattern for pattern in ratios if pattern != "default"]
    reached = {group.name: reaching(coupling, group, own, names) or "default" for group in free}
    return [
        *(("ignore", pattern, tuple(name for name, by in held.items() if pattern in by)) for pattern in ignore),
        *(("ratios", pattern, tuple(name for name, by in reached.items() if pattern == by)) for pattern in ratios),
    ]


def nearest(pattern: str, known: Iterable[str]) -> str:
    """Returns the end of a sentence with the names that are most like a pattern, or with some."""
    names = sorted(known)
    close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(close)}?" if close else f"; there are {', '.join(names[:3])} and so on"


def check_patterns(coupling: Coupling, ignore: Sequence[str], ratios: Sequence[str]) -> None:
    """Warns of each pattern that does nothing, and says why, or which names are near."""
    names = names_of_layers(coupling)
    for option, pattern, groups in taken(coupling, ignore, ratios):
        if not groups and (option == "ratios" or not any(matches(spelled, pattern) for spelled in names.values())):
            text = f"{option} pattern {pattern!r} {_why_unused(option, pattern, coupling, names)}"
            warnings.warn(text, IgnoredPatternWarning, stacklevel=outside())


def _why_unused(option: str, pattern: str, coupling: Coupling, names: Mapping[str, set[str]]) -> str:
    partly = [g for g in coupling.groups if any(matches(names.get(m, {m}), pattern) for m in makers_of(coupling, g))]
    if any(reaching(coupling, group, [pattern], names) for group in partly):
        return (
            "reaches no group that is left: what is ignored stays, and of two patterns that reach one the first counts"
        )
    if partly:
        others = sorted(m for m in makers_of(coupling, partly[0]) if not matches(names.get(m, {m}), pattern))
        return f"reaches no group: {partly[0].name!r} is made by {', '.join(m or 'the model itself' for m in others[:3])} as well"
    if any(matches(spelled, pattern) for spelled in names.values()):
        return "reaches no group: what it matches makes no channels, which only pass it or end there"
    known = set().union(*names.values(), (group.name for group in coupling.groups))
    return f"matches no {'group' if option == 'ratios' else 'layer'}{nearest(pattern, known)}"

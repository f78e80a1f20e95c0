"""Blocks: whole residual branches as units, found from the graph alone.

A branch goes when the groups within it that may vanish (`fxprune.coupling.branches`) do. In the algebra of axes that is one more
channel: every label of those groups gets it beside its own, ``(a)`` becomes ``(a, block)``, so that each coordinate goes
with its own channel or with the block. Scores, costs, twin and slicing then know blocks as they know heads. A branch of one
layer has no group of its own: what that layer reads gets the block's channel at the layer alone.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from torch import fx

from fxprune.algebra.axes import Axis, Factor, labels_of, size_of
from fxprune.algebra.channels import Ids
from fxprune.coupling.branches import collapse_of, collapses, skips_of
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.units import ParameterAxis, form_groups
from fxprune.ops.tracer import Contraction


def has_blocks(coupling: Coupling) -> bool:
    """Returns whether any unit is a block."""
    return any(group.kind == "block" for group in coupling.groups)


def with_blocks(coupling: Coupling) -> Coupling:
    """Returns the coupling with a unit of kind ``"block"``, a group of its own, for every residual branch.

    Branches that only go together (layers that share weights) are one block. The given coupling is left as it is.
    """
    channels = copy.deepcopy(coupling.channels)
    by_frontier = _by_frontier(coupling)
    if branches := [np.concatenate(parts) for parts in _innermost(by_frontier)]:
        blocks = channels.fresh(len(branches), "block")
        channels.join(np.concatenate(branches), blocks.repeat([len(ids) for ids in branches]))
    if layers := list(_last_layers(coupling, frozenset().union(*by_frontier))):
        coupling = _apart(coupling, dict(zip(layers, channels.fresh(len(layers), "block").tolist(), strict=True)))
    axes = tuple(replace(axis, labels=channels.resolve(axis.labels)) for axis in coupling.axes)
    units, groups = form_groups(channels, axes)
    return replace(coupling, channels=channels, axes=axes, units=units, groups=groups)


def _by_frontier(coupling: Coupling) -> dict[frozenset[fx.Node], list[Ids]]:
    """Returns the channels of the groups that may vanish, by the constants that they leave."""
    found: dict[frozenset[fx.Node], list[Ids]] = {}
    members = {group.name: coupling.units[group.units] for group in coupling.groups}
    for name, collapse in collapses(coupling, coupling.groups).items():
        found.setdefault(frozenset(collapse.frontier), []).append(members[name])
    return found


def _innermost(by_frontier: Mapping[frozenset[fx.Node], list[Ids]]) -> Iterator[list[Ids]]:
    """Yields for each residual branch the channels of the groups whose vanishing takes it, and nothing else, away."""
    for frontier, parts in by_frontier.items():
        if not any(other < frontier for other in by_frontier):
            yield parts


def _last_layers(coupling: Coupling, known: frozenset[fx.Node]) -> Iterator[Contraction]:
    """Yields the layers that alone make a branch vanish: the only one beside a skip, or the last of what is held.

    What they are added to must be what they were computed from, so that all of them may go together.
    """
    everything = coupling.slicer(coupling.removed_mask(()))
    uses = Counter(c.weight for c in coupling.contractions)
    for contraction in coupling.contractions:
        weight = contraction.weight
        if weight is None or uses[weight] > 1 or len(weight.users) > 1 or size_of(contraction.axis) < 2:
            continue
        collapse = collapse_of(coupling, everything, [contraction.node])
        if not collapse.constant or not collapse.legal or not known.isdisjoint(collapse.frontier):
            continue
        sources = _sources(contraction.node)
        if all(skip in sources for skip in skips_of(collapse)):
            known |= {*collapse.frontier}
            yield contraction


def _sources(node: fx.Node) -> set[fx.Node]:
    """Returns all that a node is computed from."""
    found, waiting = {node}, [node]
    while waiting:
        new = [source for source in waiting.pop().all_input_nodes if source not in found]
        found.update(new)
        waiting += new
    return found


def _apart(coupling: Coupling, blocks: Mapping[Contraction, int]) -> Coupling:
    """Gives what each layer reads, and its weight, a channel of its own beside the others: label ``(a)`` becomes ``(a, block)``.

    The values that the layer reads and gives keep theirs, since nothing of the layer is left once its block is gone.
    """
    values, contractions, axes = dict(coupling.values), list(coupling.contractions), list(coupling.axes)
    for contraction, block in blocks.items():
        weight, axis = contraction.weight, _beside(contraction.axis, block)
        assert weight is not None
        values[weight] = tuple(_beside(a, block) if d < 2 else a for d, a in enumerate(values[weight]))
        loops = (axis, *(loop for loop in contraction.loops if loop is not contraction.axis))
        contractions[contractions.index(contraction)] = replace(contraction, axis=axis, loops=loops)
        axes = _with_weight(axes, str(weight.target), values[weight])
    return replace(coupling, values=values, contractions=tuple(contractions), axes=tuple(axes))


def _beside(axis: Axis, block: int) -> Axis:
    """Returns an axis that goes altogether with the block."""
    if not axis:
        return axis
    first, *rest = axis
    labels = np.zeros((first.size, 0), np.int64) if first.labels is None else first.labels
    column = np.full((first.size, 1), block, np.int64)
    return (Factor(first.size, np.concatenate([labels, column], axis=1)), *rest)


def _with_weight(axes: list[ParameterAxis], name: str, own: tuple[Axis, ...]) -> list[ParameterAxis]:
    """Returns the axes with those of one weight described anew."""
    result: list[ParameterAxis] = []
    seen: set[int] = set()
    for axis in axes:
        if axis.tensor != name:
            result.append(axis)
        elif axis.dim not in seen:
            seen.add(axis.dim)
            result += [replace(axis, labels=labels) for labels in labels_of(own[axis.dim])]
    return result

"""Cost by layer: where parameters and MACs are, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx

from fxprune._base.names import layer_of
from fxprune.budget.cost import Cost, cost_model
from fxprune.coupling.branches import vanishing_groups
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.ops.tracer import Contraction
from fxprune.results.record import LayerRow


@dataclass(slots=True)
class _Part:
    """What of a graph belongs to one layer."""

    values: dict[fx.Node, Any] = field(default_factory=dict)
    contractions: list[Contraction] = field(default_factory=list)


def layer_rows(coupling: Coupling, selection: Selection) -> tuple[LayerRow, ...]:
    """Returns parameters and MACs of every layer that has any, front to back; they add up to the model's.

    Args:
        coupling: of the model as it came.
        selection: what goes, of the same model or of what bridges have left of it.
    """
    before, after = _costs(Selection.nothing(coupling)), _costs(selection)
    nothing = Cost(0, 0, 0)
    both = {name: (before.get(name, nothing), after.get(name, nothing)) for name in (*before, *after)}
    rows = (LayerRow(name, (a.params, b.params), (a.macs, b.macs)) for name, (a, b) in both.items())
    return tuple(row for row in rows if any(row.params + row.macs))


def _costs(selection: Selection) -> dict[str, Cost]:
    coupling, removed = selection.coupling, selection.removed
    empty = [group for group in coupling.groups if removed[coupling.units[group.units]].all()]
    vanished = vanishing_groups(coupling, empty) if empty else {}
    return {
        name: cost_model(
            replace(coupling, values=part.values, contractions=tuple(part.contractions), least=()),
            _among(vanished, part),
        ).of(removed)
        for name, part in _parts(coupling).items()
    }


def _parts(coupling: Coupling) -> Mapping[str, _Part]:
    """Returns the layers in the order in which the graph comes to them."""
    parts: dict[str, _Part] = {}
    weights = {node: axes for node, axes in coupling.values.items() if node.op == "get_attr"}
    sums: dict[fx.Node, list[Contraction]] = {}
    for contraction in coupling.contractions:
        sums.setdefault(contraction.node, []).append(contraction)
    for node in coupling.captured.module.graph.nodes:
        for source in node.all_input_nodes:
            # at its first reader: all parameters stand together at the start of a graph
            if source in weights:
                parts.setdefault(_owner(source), _Part()).values[source] = weights.pop(source)
        for contraction in sums.get(node, ()):
            owner = str(node.meta.get("module", "")) or node.name
            name = owner if contraction.weight is None else _owner(contraction.weight)
            parts.setdefault(name, _Part()).contractions.append(contraction)
    for node, axes in weights.items():
        parts.setdefault(_owner(node), _Part()).values[node] = axes
    return parts


def _owner(node: fx.Node) -> str:
    name = str(node.target)
    return layer_of(name) or name


def _among(vanished: Mapping[str, frozenset[str]], part: _Part) -> dict[str, frozenset[str]]:
    """Returns the groups that have vanished and take something of this part with them."""
    names = {str(node.target) for node in part.values}
    names |= {str(c.weight.target) for c in part.contractions if c.weight is not None}
    return {group: tensors for group, tensors in vanished.items() if tensors & names}

"""Layers that identity shortcuts join, found from the groups alone (SPvR, Appendix B)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fxprune.coupling.units import Group

if TYPE_CHECKING:
    import networkx as nx


def families(groups: Sequence[Group]) -> list[tuple[str, ...]]:
    """Returns the names of groups that shrink together stage by stage; blocks, and groups that no shortcut joins, are not.

    A group leads to another if a layer that reads the first makes the second. What an identity shortcut joins is a
    cycle: the stream leads to the inside of a block, and that back to the stream. The inside of a block with a
    projection beside it lies on no cycle; it belongs to the stream that it leads to.
    """
    import networkx as nx

    groups = [group for group in groups if group.kind != "block"]
    made: dict[str, list[str]] = {}
    for group in groups:
        for layer in group.producers:
            made.setdefault(layer, []).append(group.name)
    leads: nx.DiGraph[str] = nx.DiGraph()
    leads.add_nodes_from(group.name for group in groups)
    leads.add_edges_from((g.name, other) for g in groups for layer in g.consumers for other in made.get(layer, ()))
    found = []
    for component in nx.strongly_connected_components(leads):
        if len(component) > 1:
            family = set(component)
            entries = {before for one in component for before in leads.predecessors(one)} - family
            _take_in(leads, family, entries)
            found.append(tuple(group.name for group in groups if group.name in family))
    return sorted(found)


def _take_in(leads: nx.DiGraph[str], family: set[str], entries: Iterable[str]) -> None:
    """Adds the insides of blocks beside a projection: all they lead to is the family, all that leads to them its entry."""
    entries = set(entries)
    waiting = list(entries)
    while waiting:
        one = waiting.pop()
        before, after = set(leads.predecessors(one)), set(leads.successors(one))
        if one not in family and before and before <= entries | family and after <= family:
            family.add(one)
            waiting += before - family
            entries |= before - family


def round_scores(groups: Sequence[Group], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns scores, ``[units]`` each, by which the layers of a family lose their own least units in step.

    The i-th lowest part of every member gets the lowest score that any member has there: when one layer's turn comes, all
    of the family lose the same share, each its own least.
    """
    result = {name: score.clone() for name, score in scores.items()}
    for family in families(groups):
        orders = {name: scores[name].argsort(stable=True) for name in family}
        steps = max(len(order) for order in orders.values())
        least = torch.full((steps,), torch.inf, dtype=torch.float64)
        at = {name: (torch.arange(len(order)) * steps) // len(order) for name, order in orders.items()}
        for name, order in orders.items():
            least.scatter_reduce_(0, at[name], scores[name][order], "amin")
        least = least.flip(0).cummin(0).values.flip(0)  # never lower later: a round waits for none before it
        for name, order in orders.items():
            result[name][order] = least[at[name]]
    return result

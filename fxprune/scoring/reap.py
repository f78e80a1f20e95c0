"""REAP: what an expert of a mixture adds where it is chosen, as its router weighs it (Lasby et al. 2025, arXiv 2510.13999).

``S_j`` is the mean of ``g_j(x) |f_j(x)|_2`` over the tokens x that are sent to expert j, ``g`` the router's weights and ``f`` the
experts. An expert whose weights are zero adds nothing: ``g_j f_j`` is what the mixture loses by that, whatever the way in which
it is written down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from fxprune._base.errors import ScorerError
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.coupling.unit_scores import STAYS
from fxprune.coupling.units import Group
from fxprune.ops.registry import is_kind
from fxprune.scoring.scorer import Context, Scorer, register_scorer
from fxprune.twin.interpreter import Run

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True, slots=True)
class Reap(Scorer):
    """The mean norm of what an expert adds to the tokens that are sent to it; all else stays.

    It is ranked as it is. The paper takes the same share of each mixture: ``allocation="uniform"``, or ``ratios``.
    """

    name: str = "reap"
    needs: tuple[str, ...] = ("activations",)
    per_cost: bool = False

    @torch.no_grad()
    def score(self, context: Context) -> dict[str, Tensor]:
        """Returns ``[units]`` for each group of experts, float64: zero for one that no token is sent to; `STAYS` for all else.

        Raises:
            ScorerError: there are no experts that may go.
        """
        coupling = context.coupling
        mixtures = [_mixture(coupling, group) for group in context.groups if group.kind == "expert"]
        if not mixtures:
            raise ScorerError(
                f"method {self.name!r} expects experts that may go, beside a router that chooses among them; this model has "
                "none, or none that units and ignore let go: use another method, e.g. 'variance'"
            )
        run = Run(Selection.nothing(coupling))
        sums = {mixture.group.name: torch.zeros(2, len(mixture.group.units)).double() for mixture in mixtures}
        for inputs in context.inputs:
            kept: dict[fx.Node, Any] = {}
            for node, values in run.steps(inputs):
                for mixture in mixtures:
                    if node in mixture.given:
                        kept[node] = values[node]
                    elif node is mixture.nodes[-1]:
                        sums[mixture.group.name] += mixture.added(run, kept, values[node])
                        waiting = set().union(*(other.given for other in mixtures if other.nodes[-1] not in values))
                        kept = {source: value for source, value in kept.items() if source in waiting}
        stay = {group.name: torch.full((len(group.units),), STAYS) for group in coupling.groups}
        return stay | {name: total / count.clamp(min=1) for name, (total, count) in sums.items()}


@dataclass(frozen=True, slots=True, eq=False)
class _Mixture:
    """Experts in the graph.

    Attributes:
        group: their units.
        rows: for each of their tensors its dimension of experts, and for each unit which of these are its own, ``[units, size]``.
        nodes: the ops from these tensors to where what the experts add lies together, in order.
        given: what these read of the rest.
    """

    group: Group
    rows: Mapping[fx.Node, tuple[int, Tensor]]
    nodes: Sequence[fx.Node]
    given: frozenset[fx.Node]

    def added(self, run: Run, given: Mapping[fx.Node, Any], whole: Tensor) -> Tensor:
        """Returns the norms of what each expert adds, a sum over the tokens, and to how many it adds anything, ``[2, units]``."""
        found = []
        for unit in range(len(self.group.units)):
            values = dict(given)
            for tensor, (dim, rows) in self.rows.items():
                values[tensor] = given[tensor].index_fill(dim, rows[unit].nonzero()[:, 0].to(whole.device), 0)
            for node in self.nodes:
                values[node] = run.step(node, values, iter(()))
            norms = (whole - values[self.nodes[-1]]).double().norm(dim=-1)
            found.append(torch.stack([norms.sum(), (norms > 0).sum()]).cpu())
        return torch.stack(found, 1)


def _mixture(coupling: Coupling, group: Group) -> _Mixture:
    """Returns where a group's experts begin and end in the graph."""
    import networkx as nx

    flow = nx.DiGraph([(node, user) for node in coupling.captured.module.graph.nodes for user in node.users])
    rows = _rows(coupling, group)
    behind = set(rows).union(*(nx.descendants(flow, node) for node in rows))
    end = _end(flow, {user for node in rows for user in node.users}, behind)
    inside = behind & ({end} | nx.ancestors(flow, end)) - set(rows)
    nodes = [node for node in coupling.captured.module.graph.nodes if node in inside]
    return _Mixture(group, rows, nodes, frozenset(s for n in nodes for s in n.all_input_nodes if s not in inside))


def _rows(coupling: Coupling, group: Group) -> dict[fx.Node, tuple[int, Tensor]]:
    """Returns the tensors of the experts themselves, as `_Mixture` has them; the router's columns read what is sent."""
    read = {axis.tensor for axis in coupling.axes if axis.reads}
    lone = [Selection(coupling, coupling.removed_mask([unit])).slicer for unit in group.units]
    on, found = {coupling.axes[i].tensor: coupling.axes[i].dim for i, _ in group.axes}, {}
    for node in coupling.values:
        dim, axes = on.get(str(node.target)), coupling.values[node]
        if (
            node.op == "get_attr"
            and dim is not None
            and axes is not None
            and len(axes) > (2 if node.target in read else 1)
        ):
            masks = [slicer.mask(axes[dim]) for slicer in lone]
            found[node] = (dim, torch.stack([~torch.from_numpy(mask) for mask in masks if mask is not None]))
    return found


def _end(flow: nx.DiGraph[fx.Node], users: set[fx.Node], behind: set[fx.Node]) -> fx.Node:
    """Returns the last value that all the experts' work goes into before anything else is added to it, or it is read.

    What they give is then weighed: the router's weights are not added, but multiplied with.
    """
    import networkx as nx

    output = next(node for node in flow if node.op == "output")
    over = nx.immediate_dominators(flow.reverse(), output)

    def chain(node: fx.Node) -> list[fx.Node]:
        """Returns the nodes that every path from one to the output goes through, in order."""
        found = [node]
        while found[-1] is not output:
            found.append(over[found[-1]])
        return found

    first, *others = map(chain, users)
    common = [node for node in first if all(node in other for other in others)]
    for node, after in pairwise(common):
        alone = behind.issuperset(after.all_input_nodes)
        if after is output or is_kind(after, "linear", "conv", "norm") or (is_kind(after, "addition") and not alone):
            return node
    return common[-1]


register_scorer("reap", Reap)

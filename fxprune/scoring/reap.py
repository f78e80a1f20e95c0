"""REAP: what an expert of a mixture adds where it is chosen, as its router weighs it (Lasby et al. 2025, arXiv 2510.13999).

``S_j`` is the mean of ``g_j(x) |f_j(x)|_2`` over the tokens x that are sent to expert j, ``g`` the router's weights and ``f`` the
experts. What expert j gives is what is no number once its weights are none, whatever the way in which the mixture is written down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx

from fxprune._base.errors import ScorerError
from fxprune.algebra.axes import labels_of
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.coupling.unit_scores import STAYS
from fxprune.coupling.units import Group
from fxprune.ops.registry import rule_at
from fxprune.scoring.scorer import Context, Scorer, register_scorer
from fxprune.twin.interpreter import Run

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True, slots=True)
class Reap(Scorer):
    """The mean norm of what an expert adds to the tokens that are sent to it; all else stays.

    It is ranked as it is. The paper takes the same share of each mixture: ``allocation="uniform"``, or ``ratios``. The mixture is run
    once more for each expert: its time is that of so many passes through it.
    """

    name: str = "reap"
    needs: tuple[str, ...] = ("activations",)
    per_cost: bool = False

    @torch.no_grad()
    def score(self, context: Context) -> dict[str, Tensor]:
        """Returns ``[units]`` for each group of experts, float64: zero for one that no token is sent to; `STAYS` for all else.

        Raises:
            ScorerError: there are no experts that may go, or it cannot be told where their router weighs them.
        """
        coupling = context.coupling
        mixtures = [_mixture(coupling, group) for group in context.groups if group.kind == "expert"]
        if not mixtures:
            raise ScorerError(
                f"method {self.name!r} expects experts that may go, beside a router that chooses among them; this model has "
                "none, or none that units and ignore let go: use another method, e.g. 'variance'"
            )
        run, ends = Run(Selection.nothing(coupling)), {mixture.product: mixture for mixture in mixtures}
        sums = {mixture.group.name: torch.zeros(2, len(mixture.group.units)).double() for mixture in mixtures}
        for inputs in context.inputs:
            kept, waiting = dict[fx.Node, Any](), Counter(node for mixture in mixtures for node in mixture.given)
            for node, values in run.steps(inputs):
                if node in waiting:
                    kept[node] = values[node]
                if mixture := ends.get(node):
                    sums[mixture.group.name] += mixture.added(run, kept, values)
                    waiting.subtract(mixture.given)
                    kept = {source: value for source, value in kept.items() if waiting[source] > 0}
        stay = {group.name: torch.full((len(group.units),), STAYS).double() for group in coupling.groups}
        return stay | {name: total / count.clamp(min=1) for name, (total, count) in sums.items()}


@dataclass(frozen=True, slots=True, eq=False)
class _Mixture:
    """Experts in the graph.

    Attributes:
        group: their units.
        rows: for each of their tensors its dimension of experts, and for each unit which of these are its own, ``[units, size]``.
        nodes: the ops from these tensors to what the experts give, in order.
        given: what these and the product read of the rest.
        work: what the experts give.
        product: where the router's weights are multiplied with it.
        dims: of the result's dimensions those of channels.
    """

    group: Group
    rows: Mapping[fx.Node, tuple[int, Tensor]]
    nodes: Sequence[fx.Node]
    given: frozenset[fx.Node]
    work: fx.Node
    product: fx.Node
    dims: tuple[int, ...]

    def added(self, run: Run, given: Mapping[fx.Node, Any], values: Mapping[fx.Node, Any]) -> Tensor:
        """Returns the norms of what each expert adds, a sum over the tokens, and to how many it is sent, ``[2, units]``."""
        work, found = values[self.work], []
        for unit in range(len(self.group.units)):
            other = dict(given)
            for tensor, (dim, rows) in self.rows.items():
                other[tensor] = given[tensor].index_fill(dim, rows[unit].nonzero()[:, 0].to(work.device), torch.nan)
            for node in self.nodes:
                other[node] = run.step(node, other, iter(()))
            own = other[self.work].isnan() & ~work.isnan()
            alone = (work.masked_fill(~own, 0.0), own.to(work), torch.zeros_like(work))
            adds, asked, nothing = (run.step(self.product, {**other, self.work: x}, iter(())) for x in alone)
            sent = (asked != nothing).any(dim=self.dims)
            norms = torch.linalg.vector_norm((adds - nothing).double(), dim=self.dims)
            found.append(torch.stack([norms.sum(), sent.sum()]).cpu())
        return torch.stack(found, 1)


def _mixture(coupling: Coupling, group: Group) -> _Mixture:
    """Returns where a group's experts begin and end in the graph.

    Raises:
        ScorerError: what they give is multiplied with weights of their router nowhere, or in several places.
    """
    import networkx as nx

    graph = coupling.captured.module.graph
    flow = nx.DiGraph([(node, user) for node in graph.nodes for user in node.users])
    rows, routers = _tensors(coupling, group)
    behind, routed = ({n for tensor in some for n in nx.descendants(flow, tensor)} for some in (rows, routers))
    sums = {c.node for c in coupling.contractions}
    given_by = {after for node in sums & behind for after in (node, *nx.descendants(flow, node))}
    readers = set().union(*map(_readers, rows))
    for node in _shared(flow, rows):
        works, weights = (some & set(node.all_input_nodes) for some in (given_by, routed - behind))
        rule = rule_at(node)
        if (
            len(works) == len(weights) == 1
            and node not in readers
            and rule is not None
            and (rule.scales or node in sums)
        ):
            inside = (behind & nx.ancestors(flow, node)) - set(rows)
            nodes = [each for each in graph.nodes if each in inside]
            given = frozenset(s for each in (*nodes, node) for s in each.all_input_nodes if s not in inside)
            return _Mixture(group, rows, nodes, given, works.pop(), node, _channel_dims(coupling, group, node))
    raise ScorerError(
        f"method 'reap': {group.name}: expected one place where what its experts give is multiplied with weights of their router, "
        "found none: the mixture may be called twice; hold it by ignore, or use another method, e.g. 'variance'"
    )


def _channel_dims(coupling: Coupling, group: Group, node: fx.Node) -> tuple[int, ...]:
    """Returns the dimensions of a value that hold channels, those of experts apart; the last one if it is not known of any."""
    axes, experts = coupling.values[node], set(coupling.units[group.units].tolist())
    assert isinstance(axes, tuple)
    own = [{int(label) for labels in labels_of(axis) for label in labels.ravel()} for axis in axes]
    marked = [d for d, labels in enumerate(own) if labels and experts.isdisjoint(labels)]
    return tuple(marked) or (len(axes) - 1,)


def _tensors(coupling: Coupling, group: Group) -> tuple[dict[fx.Node, tuple[int, Tensor]], list[fx.Node]]:
    """Returns the tensors of the experts themselves, as `_Mixture` has them, and those of the router, a row or number for each expert.

    A matrix of one row for each expert is the router's if it is multiplied with, and a bias of theirs if not.
    """
    lone = [Selection(coupling, coupling.removed_mask([unit])).slicer for unit in group.units]
    on = {coupling.axes[i].tensor: coupling.axes[i].dim for i, _ in group.axes}
    sums = {c.node for c in coupling.contractions}
    rows, routers = dict[fx.Node, tuple[int, Tensor]](), list[fx.Node]()
    for node in coupling.values:
        dim, axes = on.get(str(node.target)), coupling.values[node]
        if node.op != "get_attr" or dim is None or axes is None:
            continue
        if len(axes) < 2 or (len(axes) == 2 and _readers(node) & sums):
            routers.append(node)
        else:
            masks = [slicer.mask(axes[dim]) for slicer in lone]
            assert all(mask is not None for mask in masks), node
            rows[node] = (dim, ~torch.from_numpy(np.stack(masks)))  # type: ignore[arg-type]
    return rows, routers


def _readers(node: fx.Node) -> set[fx.Node]:
    """Returns the ops that read a tensor, as it is or turned."""
    turned = [user for user in node.users if (rule := rule_at(user)) is not None and (rule.moves or rule.carries)]
    return set(node.users).union(*map(_readers, turned))


def _shared(flow: nx.DiGraph[fx.Node], tensors: Collection[fx.Node]) -> list[fx.Node]:
    """Returns the ops that every path from some tensors to the output goes through, in order."""
    import networkx as nx

    output = next(node for node in flow if node.op == "output")
    over = nx.immediate_dominators(flow.reverse(), output)

    def chain(node: fx.Node) -> list[fx.Node]:
        found = [node]
        while found[-1] is not output:
            found.append(over[found[-1]])
        return found

    first, *others = map(chain, tensors)
    return [node for node in first if node is not output and all(node in other for other in others)]


register_scorer("reap", Reap)

"""What to say of a budget that cannot be reached: what holds the model up."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fxprune.algebra.channels import Mask
from fxprune.budget.cost import Cost, CostModel
from fxprune.budget.ties import Ties
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.unit_scores import STAYS

Floats = npt.NDArray[np.float64]


def unreachable(
    coupling: Coupling,
    model: CostModel,
    values: Floats,
    smallest: Mask,
    limits: Mapping[int, int],
    before: Cost,
    tied: Ties | None,
) -> str:
    """Returns why a budget cannot be reached: the smallest that can, what holds it, and why.

    Args:
        coupling: of the captured graph.
        model: of its cost.
        values: the score of each channel id, ``[channels]``.
        smallest: flags all that may go, ``[channels]``.
        limits: by the number of the cost, what it may be.
        before: the cost of the whole.
        tied: what stays because the original's class cannot say otherwise.
    """
    cost = model.of(smallest)
    names = {0: "params", 1: "MACs"}
    lines = [
        f"a budget of {limit} {names[i]} ({limit / max(before[i], 1):.4f}) cannot be reached: the smallest is "
        f"{cost[i]} ({math.ceil(1e4 * cost[i] / max(before[i], 1)) / 1e4:.4f})"
        for i, limit in limits.items()
        if cost[i] > limit
    ]
    slicer = coupling.slicer(smallest)
    sizes = []
    for node, axes in coupling.values.items():
        if node.op == "get_attr" and node.target in coupling.captured.persistent and axes is not None:
            sizes.append((math.prod(map(slicer.count, axes)), str(node.target)))
    stays = [group for group in coupling.groups if (values[coupling.units[group.units]] == STAYS).all()]
    kept = {coupling.axes[i].tensor: "the method, which takes none of its units" for g in stays for i, _ in g.axes}
    why = kept | {f.tensor: f.reason for f in coupling.frozen()}
    held = [f"{name} ({size}: {why.get(name, 'min_keep, ignore or round_to')})" for size, name in sorted(sizes)[-3:]]
    text = "; ".join(lines) + ". Held by " + ", ".join(reversed(held))
    return text if tied is None or not tied.held.any() else f"{text}. {_by_class(coupling, tied.held)}"


def _by_class(coupling: Coupling, held: Mask) -> str:
    """Returns what to say of units that stay since the original's class cannot say how many are left."""
    stay = [(int(held[coupling.units[group.units]].sum()), group.name) for group in coupling.groups]
    names = [f"{name} ({count})" for count, name in sorted(stay, key=lambda pair: -pair[0])[:3] if count]
    return (
        f"{int(held[coupling.units].sum())} units stay because the original's class cannot say how many are left, most in "
        f"{', '.join(names)}: its forward has these sizes as numbers, or computes with them; form='graph' can remove them"
    )

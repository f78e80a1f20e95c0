"""Parameters and MACs are what the sliced graph has, for any removal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fxprune.algebra.channels import Mask
from fxprune.budget.cost import Cost, cost_model
from fxprune.budget.solver import solve
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.rewriting.slicing import slice_graph
from tests.models import small
from tests.models.ops import attention, contract, conv
from tests.models.ops.case import Case
from tests.support.marks import but_slow
from tests.support.pruning import coupled, coupling_of, linear_coupling, prepared, random_scores, removal


def counted(coupling: Coupling, removed: Mask, args: tuple[Any, ...]) -> tuple[int, int, int]:
    """Returns parameters, MACs of the whole batch, and bytes, of the sliced graph."""
    sliced = slice_graph(Selection(coupling, removed))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        sliced(*args)
    state = {**dict(sliced.named_parameters()), **sliced.state_dict()}
    size = sum(t.numel() * t.element_size() for t in state.values())
    return sum(p.numel() for p in sliced.parameters()), counter.get_total_flops() // 2, size


@pytest.mark.parametrize("name", but_slow(small.NETWORKS, quick=("residual",)))
def test_counts_equal_the_sliced_graph(name: str) -> None:
    coupling = coupling_of(name)
    model = cost_model(coupling)
    generator = np.random.default_rng(0)
    for seed in range(8):
        ratios = {g.name: float(generator.uniform(0, 0.9)) for g in coupling.groups}
        removed = solve(coupling, random_scores(coupling, seed), ratios=ratios).removed
        args = tuple(small.NETWORKS[name][1](batch=3))
        params, macs, size = counted(coupling, removed, args)
        assert model.of(removed) == Cost(params, macs // 3, size)
    nothing = np.zeros(len(coupling.channels), bool)
    params, macs, size = counted(coupling, nothing, args)
    assert model.of(nothing) == Cost(params, macs // 3, size)
    assert params == sum(p.numel() for p in coupling.captured.model.parameters())


#: What the flop counter does not count, or counts otherwise (a matrix times a vector).
UNCOUNTED = {
    "mv",
    "dot of two parameters",
    "matmul of two vectors",
    "einsum of one operand",
    "einsum of three operands",
}
CASES = [
    case
    for family in (contract, conv, attention)
    for case in family.CASES
    if case.name not in UNCOUNTED and not case.name.startswith(("bilinear", "deformable"))
]


@pytest.mark.parametrize("case", but_slow(CASES, CASES[::3]), ids=lambda c: c.name)
def test_every_contraction_is_counted(case: Case) -> None:
    coupling = coupled(case)
    model = cost_model(coupling)
    args = case.args()
    scale = args[0].shape[0]
    for share in (0.0, 0.5):
        removed = removal(coupling, 0, share) if coupling.groups else np.zeros(len(coupling.channels), bool)
        params, macs, _ = counted(coupling, removed, args)
        assert model.of(removed).params == params
        batched = [n for n in coupling.captured.module.graph.nodes if n.op == "placeholder"]
        assert batched
        assert model.of(removed).macs == _per_sample(coupling, removed, args, macs, scale)


def _per_sample(coupling: Coupling, removed: Mask, args: tuple[Any, ...], macs: int, batch: int) -> int:
    """Returns the MACs of one sample: work that does not grow with the batch counts in full."""
    doubled = counted(coupling, removed, tuple(torch.cat([a, a]) for a in args))[1]
    each, once = (doubled - macs) // batch, 2 * macs - doubled
    return each + once


def test_slopes_bound_what_one_more_coordinate_costs() -> None:
    coupling = coupling_of("residual")
    model = cost_model(coupling)
    removed = solve(coupling, random_scores(coupling), ratios=0.6).removed
    counts = model.counts(removed)
    for cost in (0, 1):
        slopes = model.slopes(counts, cost)
        for factor in range(len(counts) - 1):
            if counts[factor] < model.sizes[factor]:
                more = counts.copy()
                more[factor] += 1
                assert slopes[factor] <= model.of_counts(more)[cost] - model.of_counts(counts)[cost]


def test_buffers_cost_bytes_and_no_parameters() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    _, coupling = prepared(model, small.image())
    cost = cost_model(coupling).of(np.zeros(len(coupling.channels), bool))
    assert cost.params == 12 + 4 + 4 + 4
    assert cost.bytes == 8 * (cost.params + 4 + 4)


def test_guards_count_a_whole_group() -> None:
    coupling = linear_coupling(5, 6, 2)
    group = coupling.groups[0]
    model = cost_model(coupling, {group.name: frozenset({"l0.weight", "l0.bias", "l1.weight"})})
    gone = coupling.removed_mask(group.units)
    assert model.of(gone).params == 2
    assert model.of(np.zeros(len(coupling.channels), bool)).params == 5 * 6 + 6 + 6 * 2 + 2
    one = gone.copy()
    one[coupling.units[group.units[0]]] = False
    assert model.of(one).params == 5 + 1 + 2 + 2

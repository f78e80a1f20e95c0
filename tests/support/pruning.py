"""The way to a plan: captured and coupled with random weights, units removed, and the exactness check."""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.algebra.channels import Mask
from fxprune.budget.constraints import Constraints
from fxprune.budget.solver import solve
from fxprune.capturing.captured import Captured, capture
from fxprune.compiler.by_hand import verify
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.interpreter import couple
from fxprune.coupling.selection import Selection
from fxprune.results.certificate import Certificate
from fxprune.rewriting.slicing import slice_graph
from tests.models.fn import Fn
from tests.models.ops.case import Case
from tests.models.small import NETWORKS
from tests.support.weights import randomise


def groups_of(coupling: Coupling) -> list[str]:
    """Returns the groups as text, one line each."""
    lines = []
    for group in coupling.groups:
        on = [(coupling.axes[i], n) for i, n in group.axes]
        axes = " ".join(f"{a.tensor}[{a.dim}]" + (f"x{n}" if n > 1 else "") for a, n in on)
        lines.append(f"{len(group.units)} {group.kind}: {axes}")
    return lines


def prepared(
    model: nn.Module, args: tuple[Tensor, ...], seed: int = 0, dynamic_shapes: Any = None
) -> tuple[Captured, Coupling]:
    """Captures and couples the model in float64 with random weights."""
    model = model.double().eval()
    with torch.no_grad():
        randomise(model, seed)
    captured = capture(model, args, dynamic_shapes=dynamic_shapes)
    return captured, couple(captured)


@functools.cache
def coupled(case: Case, *, free: bool = True) -> Coupling:
    """Returns the coupling of a case's model; sizes that are free take as long to capture as all the rest."""
    torch.manual_seed(0)
    return prepared(case.build(), case.args(), dynamic_shapes=None if free else {})[1]


def removal(coupling: Coupling, seed: int, share: float, **constraints: Any) -> Mask:
    """Returns a random removal of about this share of every group, with no axis left empty."""
    generator = torch.Generator().manual_seed(seed)
    scores = {g.name: torch.rand(len(g.units), generator=generator) for g in coupling.groups}
    return solve(coupling, scores, ratios=share, constraints=Constraints(**constraints)).removed


def certify(coupling: Coupling, args: tuple[Tensor, ...], removed: Mask) -> Certificate:
    """Compares the sliced graph with the masked twin."""
    return verify(coupling, removed, slice_graph(Selection(coupling, removed)), (args, {}))


def check(coupling: Coupling, args: tuple[Tensor, ...], inexact: bool = False) -> None:
    """Asserts that random removals, small and large, give exactly what the masked twin gives."""
    if not coupling.groups:
        return
    for seed, share in enumerate((0.3, 0.5, 0.7, 1.0)):
        least = 2 if coupling.statistics and share == 1 else 1  # the norm of a single channel is a constant
        removed = removal(coupling, seed, share, min_keep=least)
        assert removed.any() or share != 0.7
        certificate = certify(coupling, args, removed)
        assert certificate.verified is (None if inexact else True), (seed, share, certificate)


def check_case(case: Case) -> None:
    """Asserts the groups, whether a statistic is recorded, and the numbers."""
    coupling = coupled(case)
    assert sorted(groups_of(coupling)) == sorted(case.groups)
    assert bool(coupling.statistics) == case.statistic
    assert not coupling.unsupported
    check(coupling, case.args(seed=1), case.inexact)


@functools.cache
def coupling_of(name: str) -> Coupling:
    """Returns the coupling of a small network, captured once."""
    torch.manual_seed(0)
    build, example = NETWORKS[name]
    return prepared(build(), example())[1]


def linear_coupling(*widths: int) -> Coupling:
    """Returns the coupling of linear layers ``l0``, ``l1``, ... with ReLU between them."""
    layers = {f"l{i}": nn.Linear(a, b) for i, (a, b) in enumerate(pairwise(widths))}

    def forward(m: Any, x: Tensor) -> Tensor:
        for i in range(len(layers)):
            x = getattr(m, f"l{i}")(x if i == 0 else x.relu())
        return x

    return prepared(Fn(forward, **layers), (torch.randn(3, widths[0], dtype=torch.float64),))[1]


def random_scores(coupling: Coupling, seed: int = 0) -> dict[str, Tensor]:
    """Returns a random score for every unit."""
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.rand(len(g.units), generator=generator, dtype=torch.float64) for g in coupling.groups}

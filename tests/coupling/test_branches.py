"""Branches that may vanish: without channels they leave their constant, or nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fxprune._base.errors import BudgetError
from fxprune.budget.constraints import Constraints
from fxprune.budget.cost import CostModel, cost_model
from fxprune.budget.solver import Solution, solve
from fxprune.compiler.by_hand import verify
from fxprune.coupling.branches import vanishing_groups
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.rewriting.slicing import slice_graph
from tests.models import small
from tests.models.fn import Fn
from tests.support.marks import but_slow
from tests.support.pruning import linear_coupling, prepared, random_scores
from tests.support.solving import BUDGETS, restorable, solved


class Skip(nn.Module):
    """``x + branch(x)`` between a stem and a head."""

    def __init__(self, stem: nn.Module, branch: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.stem, self.branch, self.head = stem, branch, head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(x + self.branch(x))


def _conv_bn(bias: bool = True, affine: bool = True) -> nn.Module:
    branch = nn.Sequential(
        nn.Conv2d(6, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 1, bias=bias), nn.BatchNorm2d(6, affine=affine), nn.ReLU()
    )
    return Skip(nn.Conv2d(3, 6, 1), branch, nn.Conv2d(6, 2, 1))


def _linear(bias: bool = True, norm: bool = False) -> nn.Module:
    first = [nn.LayerNorm(6)] if norm else []
    branch = nn.Sequential(
        *first, nn.Linear(6, 4), nn.GELU(), nn.Dropout(0.1), nn.Linear(4, 6, bias=bias), nn.Dropout(0.1)
    )
    return Skip(nn.Linear(5, 6), branch, nn.Linear(6, 2))


TOKENS = (torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64),)

BRANCHES = {
    "conv and batch norm": (_conv_bn, small.image()),
    "conv without bias and batch norm": (lambda: _conv_bn(bias=False), small.image()),
    "conv and batch norm without parameters": (lambda: _conv_bn(affine=False), small.image()),
    "linear": (_linear, TOKENS),
    "linear without bias": (lambda: _linear(bias=False), TOKENS),
    "pre-norm MLP": (lambda: _linear(norm=True), TOKENS),
    "pre-norm MLP without bias": (lambda: _linear(norm=True, bias=False), TOKENS),
}


def _collapsed(name: str) -> tuple[Coupling, Solution, CostModel, Any]:
    build, args = BRANCHES[name]
    _, coupling = prepared(build(), args)
    vanishing = vanishing_groups(coupling, coupling.groups)
    assert len(vanishing) == 1
    group = next(iter(vanishing))
    model = cost_model(coupling, vanishing)
    solution = solve(
        coupling, random_scores(coupling), ratios={group: 1.0}, constraints=Constraints(min_keep=0), vanishing=vanishing
    )
    return coupling, solution, model, args


@pytest.mark.parametrize("name", but_slow(BRANCHES, quick=("conv and batch norm", "pre-norm MLP")))
def test_a_branch_without_channels_leaves_its_constant(name: str) -> None:
    coupling, solution, model, args = _collapsed(name)
    sliced = slice_graph(Selection(coupling, solution.removed))
    certificate = verify(coupling, solution.removed, sliced, (args, {}))
    assert certificate.verified, certificate
    kept = {n for n, _ in sliced.named_parameters() if n.startswith("branch")}
    assert sum(p.numel() for p in sliced.parameters()) == model.of(solution.removed).params == solution.after.params
    homes = {
        "conv and batch norm": {"branch.3.bias"},
        "conv without bias and batch norm": {"branch.3.bias"},
        "conv and batch norm without parameters": {"branch.2.bias"},
        "linear": {"branch.3.bias"},
        "pre-norm MLP": {"branch.4.bias"},
    }
    assert kept == homes.get(name, set())
    additions = [n for n in sliced.graph.nodes if n.target is torch.ops.aten.add.Tensor]
    assert len(additions) == (1 if kept else 0), "a branch that gives zero is gone, addition included"


def test_min_keep_one_never_collapses() -> None:
    _, coupling = prepared(_linear(), TOKENS)
    vanishing = vanishing_groups(coupling, coupling.groups)
    solution = solve(coupling, random_scores(coupling), ratios=1.0, vanishing=vanishing)
    assert cost_model(coupling).counts(solution.removed).all()


def test_the_only_path_never_collapses() -> None:
    coupling = linear_coupling(5, 6, 4, 2)
    assert vanishing_groups(coupling, coupling.groups) == {}
    solution = solve(coupling, random_scores(coupling), ratios=1.0, constraints=Constraints(min_keep=0))
    assert cost_model(coupling).counts(solution.removed).all()


@pytest.mark.slow
def test_collapse_under_a_budget_keeps_every_promise() -> None:
    for seed in range(3):
        _, coupling = prepared(
            nn.Sequential(
                Skip(nn.Linear(5, 6), nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)), nn.Linear(6, 6)),
                Skip(
                    nn.ReLU(),
                    nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6)),
                    nn.Linear(6, 2),
                ),
            ),
            TOKENS,
            seed,
        )
        vanishing = vanishing_groups(coupling, coupling.groups)
        assert len(vanishing) == 2
        model = cost_model(coupling, vanishing)
        before = None
        for share in BUDGETS:
            try:
                solution = solved(coupling, share, seed, min_keep=0, vanishing=vanishing)
            except BudgetError:
                break
            sliced = slice_graph(Selection(coupling, solution.removed))
            assert (
                sum(p.numel() for p in sliced.parameters()) == solution.after.params <= share * solution.before.params
            )
            assert not restorable(coupling, model, solution.removed, {0: int(share * solution.before.params)})
            assert verify(coupling, solution.removed, sliced, (TOKENS, {})).verified is not False
            if before is not None:
                assert solution.after.params <= before.params
            before = solution.after


def test_a_shared_reader_keeps_the_constant_from_the_wrong_place() -> None:
    model = Fn(  # the branch is also an output: it may not vanish
        lambda m, x: (m.c((y := m.a(x)) + (z := m.b2(m.b1(y).relu()))), z),
        a=nn.Linear(5, 6),
        b1=nn.Linear(6, 4),
        b2=nn.Linear(4, 6),
        c=nn.Linear(6, 2),
    )
    _, coupling = prepared(model, TOKENS)
    assert vanishing_groups(coupling, coupling.groups) == {}

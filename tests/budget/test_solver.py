"""Which units go: never over the budget, nothing left to give back, monotone, and every constraint kept."""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fxprune._base.errors import BudgetError, IgnoredPatternWarning, NothingToPruneError, ScorerError
from fxprune.algebra.channels import Mask
from fxprune.budget.budget import Budget, as_budget
from fxprune.budget.constraints import Constraints
from fxprune.budget.cost import Cost, CostModel, cost_model
from fxprune.budget.solver import Solution, solve
from fxprune.compiler.by_hand import verify
from fxprune.coupling.branches import vanishing_groups
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.rewriting.slicing import slice_graph
from tests.models import small
from tests.support.pruning import Fn, prepared

BUDGETS = [0.95 - 0.05 * i for i in range(19)] + [0.05]


def _solved(coupling: Coupling, budget: Any, seed: int = 0, **options: Any) -> Solution:
    constraints = Constraints(**{k: options.pop(k) for k in list(options) if k in Constraints.__slots__})
    scores = small.random_scores(coupling, seed)
    return solve(coupling, scores, as_budget(budget), constraints=constraints, **options)


def _restorable(coupling: Coupling, model: CostModel, removed: Mask, limits: dict[int, int]) -> list[int]:
    """Returns the removed units of which any could come back, alone, within the limits."""
    found = []
    for unit in coupling.units_of(removed):
        back = removed.copy()
        back[coupling.units[unit]] = False
        if all(model.of(back)[i] <= limit for i, limit in limits.items()):
            found.append(int(unit))
    return found


@pytest.mark.parametrize("what", ["params", "macs", "both"])
@pytest.mark.parametrize("name", small.NETWORKS)
def test_never_over_nothing_restorable_monotone(name: str, what: str) -> None:
    coupling = small.network(name)
    model = cost_model(coupling)
    larger: Cost | None = None
    reached = 0
    for share in BUDGETS:
        budget = {"params": Budget(params=share), "macs": Budget(macs=share), "both": Budget(share, share)}[what]
        try:
            solution = _solved(coupling, budget)
        except BudgetError:
            continue
        reached += 1
        limits = budget.limits(solution.before)
        assert all(solution.after[i] <= limit for i, limit in limits.items())
        assert solution.after == model.of(solution.removed)
        assert not _restorable(coupling, model, solution.removed, limits)
        if larger is not None:  # a smaller budget never gives a larger model, in what the budget is about
            assert any(solution.after[i] <= larger[i] for i in limits)
        larger = solution.after
    assert reached >= 12


@pytest.mark.parametrize("name", small.NETWORKS)
def test_no_axis_is_left_empty(name: str) -> None:
    coupling = small.network(name)
    model = cost_model(coupling)
    for seed in range(5):
        solution = solve(coupling, small.random_scores(coupling, seed), ratios=1.0)
        assert model.counts(solution.removed).all()


def test_a_share_that_rounds_to_nothing_names_the_smallest_budget() -> None:
    coupling = small.linear(3, 4, 2)
    before = cost_model(coupling).of(np.zeros(len(coupling.channels), bool))
    with pytest.raises(BudgetError, match="cannot be reached: the smallest is"):
        _solved(coupling, Budget(params=1e-9).absolute(before))


def test_a_budget_of_one_removes_nothing() -> None:
    solution = _solved(small.network("residual"), 1.0)
    assert not solution.removed.any()
    assert solution.before == solution.after


def test_the_lowest_scores_go_first() -> None:
    coupling = small.linear(5, 8, 2)
    scores = {coupling.groups[0].name: torch.tensor([3.0, 1, 4, 1.5, 9, 2.6, 5, 3.5])}
    solution = solve(coupling, scores, ratios=0.5)
    assert sorted(solution.units.tolist()) == [0, 1, 3, 5]
    by_budget = solve(coupling, scores, Budget(params=4 * 8 + 2))  # a unit costs 5 + 1 + 2, and 2 biases stay
    assert set(by_budget.units.tolist()) == {0, 1, 3, 5}


def test_scores_of_different_groups_compare_by_cost() -> None:
    coupling = small.linear(5, 4, 30, 2)
    wide, narrow = coupling.groups  # a unit of the first costs 36 parameters, of the second 7
    assert (wide.name, narrow.name) == ("l0", "l1")
    scores = {wide.name: torch.full((4,), 2.0), narrow.name: torch.full((30,), 1.0)}
    by_cost = solve(coupling, scores, Budget(params=0.8)).units
    by_score = solve(coupling, scores, Budget(params=0.8), per_cost=False).units
    assert set(by_cost) & set(wide.units)
    assert set(by_score) <= set(narrow.units)


@pytest.mark.parametrize("round_to", [2, 4, 8])
@pytest.mark.parametrize("how", [{"ratios": 0.4}, {"budget": Budget(params=0.6)}])
def test_kept_channels_come_in_multiples(round_to: int, how: dict[str, Any]) -> None:
    coupling = small.linear(5, 16, 24, 2)
    solution = solve(
        coupling, small.random_scores(coupling), how.get("budget"), ratios=how.get("ratios"),
        constraints=Constraints(round_to=round_to),
    )  # fmt: skip
    assert solution.removed.any()
    slicer = coupling.slicer(solution.removed)
    for layer in ("l0", "l1"):
        assert slicer.count(coupling.parameter(f"{layer}.weight")[0]) % round_to == 0


def test_multiples_are_of_the_layer_not_of_its_units() -> None:
    coupling = small.network("residual")
    solution = _solved(coupling, 0.5, round_to=4)
    slicer = coupling.slicer(solution.removed)
    for node, axes in coupling.values.items():
        if node.op == "get_attr" and str(node.target).startswith(("stem.0.w", "one.0.w", "two.0.w", "two.2.w")):
            assert slicer.count(axes[0]) % 4 == 0, node.target


@pytest.mark.parametrize("least", [1, 2, 3])
def test_every_group_keeps_some(least: int) -> None:
    coupling = small.network("residual")
    solution = solve(coupling, small.random_scores(coupling), ratios=1.0, constraints=Constraints(min_keep=least))
    for group in coupling.groups:
        kept = set(group.units.tolist()) - set(solution.units.tolist())
        assert len(kept) >= min(least, len(group.units))


@pytest.mark.parametrize("pattern", ["one.0", "one.*", "one.0.weight", "*.0", "*"])
def test_what_is_ignored_stays(pattern: str) -> None:
    coupling = small.network("residual")
    try:
        solution = solve(
            coupling, small.random_scores(coupling), ratios=0.7, constraints=Constraints(ignore=(pattern,))
        )
    except NothingToPruneError:
        assert pattern == "*"
        return
    slicer = coupling.slicer(solution.removed)
    assert not slicer.changed(coupling.parameter("one.0.weight")[0])
    assert slicer.changed(coupling.parameter("gate.1.weight")[0])


def test_patterns_that_match_nothing_warn() -> None:
    coupling = small.network("residual")
    scores = small.random_scores(coupling)
    with pytest.warns(IgnoredPatternWarning, match="ignore pattern 'layer9.*' matches no layer"):
        solve(coupling, scores, ratios=0.5, constraints=Constraints(ignore=("layer9.*",)))
    with pytest.warns(IgnoredPatternWarning, match="ratios pattern 'layer9.*' matches no group"):
        solve(coupling, scores, ratios={"layer9.*": 0.5, "default": 0.1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(coupling, scores, ratios=0.5, constraints=Constraints(ignore=("head", "one.*")))


def test_ratios_by_layer() -> None:
    coupling = small.network("residual")
    scores = small.random_scores(coupling)
    removed = solve(coupling, scores, ratios={"one.0": 0.5, "two.0": 0.25}).removed
    slicer = coupling.slicer(removed)
    left = {n: slicer.count(coupling.parameter(n)[0]) for n in ("stem.0.weight", "one.0.weight", "gate.1.weight")}
    assert left == {"stem.0.weight": 12, "one.0.weight": 4, "gate.1.weight": 6}
    removed = solve(coupling, scores, ratios={"one.0": 0.0, "default": 0.5}).removed
    slicer = coupling.slicer(removed)
    assert slicer.count(coupling.parameter("one.0.weight")[0]) == 8
    assert slicer.count(coupling.parameter("gate.1.weight")[0]) == 3


def test_a_group_s_own_name_comes_before_patterns() -> None:
    coupling = small.network("residual")
    twins = [g for g in coupling.groups if g.name.startswith("two.0")]
    assert len(twins) > 1
    ratios = {g.name: 0.0 if g is twins[0] else 0.5 for g in twins}
    units = set(solve(coupling, small.random_scores(coupling), ratios=ratios).units.tolist())
    assert not units & set(twins[0].units.tolist())
    assert all(units & set(g.units.tolist()) for g in twins[1:])


@pytest.mark.parametrize("kind", ["head", "head_dim", "channel"])
def test_kinds_of_unit(kind: str) -> None:
    coupling = small.network("transformer")
    solution = solve(coupling, small.random_scores(coupling), ratios=0.5, constraints=Constraints(kinds=(kind,)))
    gone = set(solution.units.tolist())
    assert gone
    assert {g.kind for g in coupling.groups if gone & set(g.units.tolist())} == {kind}


@pytest.mark.parametrize("what", ["params", "macs"])
@pytest.mark.parametrize("name", small.NETWORKS)
def test_the_smallest_budget_that_is_named_can_be_reached(name: str, what: str) -> None:
    coupling = small.network(name)
    with pytest.raises(BudgetError, match="cannot be reached: the smallest is") as caught:
        _solved(coupling, Budget(**{what: 1}))
    smallest = int(re.search(r"the smallest is (\d+)", str(caught.value)).group(1))
    solution = _solved(coupling, Budget(**{what: smallest}))
    assert getattr(solution.after, what) == smallest
    with pytest.raises(BudgetError, match=f"the smallest is {smallest} "):
        _solved(coupling, Budget(**{what: smallest - 1}))
    assert re.search(r"Held by .+ \(\d+: .+\)", str(caught.value))


def test_what_holds_a_budget_is_named() -> None:
    coupling = small.network("residual")
    with pytest.raises(BudgetError, match=r"Held by .*min_keep, ignore or round_to"):
        _solved(coupling, Budget(params=200), ignore=("two.*",))


@pytest.mark.parametrize("bad", [0.0, -0.5, 1.5, 2, True, "half", None, float("nan")])
def test_malformed_budgets(bad: Any) -> None:
    with pytest.raises(BudgetError):
        as_budget(bad)


@pytest.mark.parametrize(
    "bad", [{}, {"params": 0.0}, {"params": 1.1}, {"macs": -3}, {"macs": 0}, {"params": True}, {"params": "0.5"}]
)
def test_malformed_bounds(bad: dict[str, Any]) -> None:
    with pytest.raises(BudgetError):
        Budget(**bad)


@pytest.mark.parametrize("ratios", [1.5, -0.1, {"one.*": 2}, {"one.*": "half"}, float("nan")])
def test_malformed_ratios(ratios: Any) -> None:
    coupling = small.network("residual")
    with pytest.raises(BudgetError, match="a ratio is the share removed"):
        solve(coupling, small.random_scores(coupling), ratios=ratios)


def test_a_budget_or_ratios_not_both() -> None:
    coupling = small.network("residual")
    scores = small.random_scores(coupling)
    for options in ({}, {"budget": Budget(0.5), "ratios": 0.5}):
        with pytest.raises(BudgetError, match="either a budget or ratios"):
            solve(coupling, scores, **options)


def test_nothing_to_prune() -> None:
    _, frozen = prepared(nn.Linear(5, 5), (torch.randn(3, 5, dtype=torch.float64),))
    with pytest.raises(NothingToPruneError, match=r"fixed parts: .*the result of"):
        solve(frozen, {}, ratios=0.5)
    with pytest.raises(NothingToPruneError, match="no channel of this model can be removed"):
        _solved(small.linear(5, 6, 2), 0.5, kinds=("head",))


def test_unusable_scores() -> None:
    coupling = small.linear(5, 6, 2)
    name = coupling.groups[0].name
    for scores, message in (
        ({}, f"no scores for group '{name}'"),
        ({name: torch.ones(5)}, "has 6 units, got scores of shape"),
        ({name: torch.ones(6, 1)}, "has 6 units, got scores of shape"),
        ({name: torch.tensor([1, 2, 3, 4, 5, math.nan])}, "1 scores are not finite"),
        ({name: torch.tensor([1, 2, 3, 4, math.inf, math.nan])}, "2 scores are not finite"),
    ):
        with pytest.raises(ScorerError, match=message):
            solve(coupling, scores, ratios=0.5)


# -- collapse -----------------------------------------------------------------------------------------------------


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
        coupling, small.random_scores(coupling), ratios={group: 1.0}, constraints=Constraints(min_keep=0),
        vanishing=vanishing, model=model,
    )  # fmt: skip
    return coupling, solution, model, args


@pytest.mark.parametrize("name", BRANCHES)
def test_a_branch_without_channels_leaves_its_constant(name: str) -> None:
    coupling, solution, model, args = _collapsed(name)
    sliced = slice_graph(Selection(coupling, solution.removed))
    certificate = verify(coupling, solution.removed, sliced, (args, {}))
    assert certificate.verified, certificate
    kept = {n for n, _ in sliced.named_parameters() if n.startswith("branch")}
    assert sum(p.numel() for p in sliced.parameters()) == model.of(solution.removed).params == solution.after.params
    homes = {
        "conv and batch norm": {"branch.3.bias"}, "conv without bias and batch norm": {"branch.3.bias"},
        "conv and batch norm without parameters": {"branch.2.bias"},
        "linear": {"branch.3.bias"}, "pre-norm MLP": {"branch.4.bias"},
    }  # fmt: skip
    assert kept == homes.get(name, set())
    additions = [n for n in sliced.graph.nodes if n.target is torch.ops.aten.add.Tensor]
    assert len(additions) == (1 if kept else 0), "a branch that gives zero is gone, addition included"


def test_min_keep_one_never_collapses() -> None:
    _, coupling = prepared(_linear(), TOKENS)
    vanishing = vanishing_groups(coupling, coupling.groups)
    solution = solve(coupling, small.random_scores(coupling), ratios=1.0, vanishing=vanishing)
    assert cost_model(coupling).counts(solution.removed).all()


def test_the_only_path_never_collapses() -> None:
    coupling = small.linear(5, 6, 4, 2)
    assert vanishing_groups(coupling, coupling.groups) == {}
    solution = solve(coupling, small.random_scores(coupling), ratios=1.0, constraints=Constraints(min_keep=0))
    assert cost_model(coupling).counts(solution.removed).all()


def test_collapse_under_a_budget_keeps_every_promise() -> None:
    for seed in range(3):
        _, coupling = prepared(
            nn.Sequential(Skip(nn.Linear(5, 6), nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)), nn.Linear(6, 6)),
                          Skip(nn.ReLU(), nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6)),
                               nn.Linear(6, 2))), TOKENS, seed)  # fmt: skip
        vanishing = vanishing_groups(coupling, coupling.groups)
        assert len(vanishing) == 2
        model = cost_model(coupling, vanishing)
        before = None
        for share in BUDGETS:
            try:
                solution = _solved(coupling, share, seed, min_keep=0, model=model, vanishing=vanishing)
            except BudgetError:
                break
            sliced = slice_graph(Selection(coupling, solution.removed))
            assert (
                sum(p.numel() for p in sliced.parameters()) == solution.after.params <= share * solution.before.params
            )
            assert not _restorable(coupling, model, solution.removed, {0: int(share * solution.before.params)})
            assert verify(coupling, solution.removed, sliced, (TOKENS, {})).verified is not False
            if before is not None:
                assert solution.after.params <= before.params
            before = solution.after


def test_a_shared_reader_keeps_the_constant_from_the_wrong_place() -> None:
    model = Fn(  # the branch is also an output: it may not vanish
        lambda m, x: (m.c((y := m.a(x)) + (z := m.b2(m.b1(y).relu()))), z), a=nn.Linear(5, 6), b1=nn.Linear(6, 4),
        b2=nn.Linear(4, 6), c=nn.Linear(6, 2),
    )  # fmt: skip
    _, coupling = prepared(model, TOKENS)
    assert vanishing_groups(coupling, coupling.groups) == {}


def test_units_are_numbered_as_in_the_coupling() -> None:
    coupling = small.network("residual")
    solution = _solved(coupling, 0.6)
    assert np.array_equal(coupling.units_of(solution.removed), solution.units)
    assert np.array_equal(coupling.removed_mask(solution.units), solution.removed)

"""Which units go: never over the budget, nothing left to give back, monotone, and every constraint kept."""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune._base.errors import BudgetError, IgnoredPatternWarning, NothingToPruneError, ScorerError
from fxprune.budget.budget import Budget
from fxprune.budget.constraints import Constraints
from fxprune.budget.cost import Cost, cost_model
from fxprune.budget.ranking import pools_of
from fxprune.budget.solver import channel_scores, solve
from fxprune.coupling.unit_scores import STAYS
from tests.models import small
from tests.models.fn import Fn
from tests.support.compiling import compile_small, mlp
from tests.support.pruning import coupling_of, linear_coupling, prepared, random_scores
from tests.support.solving import BUDGETS, restorable, solved


@pytest.mark.parametrize("what", ["params", "macs", "both"])
@pytest.mark.parametrize("name", small.NETWORKS)
def test_never_over_nothing_restorable_monotone(name: str, what: str) -> None:
    coupling = coupling_of(name)
    model = cost_model(coupling)
    larger: Cost | None = None
    reached = 0
    for share in BUDGETS:
        budget = {"params": Budget(params=share), "macs": Budget(macs=share), "both": Budget(share, share)}[what]
        try:
            solution = solved(coupling, budget)
        except BudgetError:
            continue
        reached += 1
        limits = budget.limits(solution.before)
        assert all(solution.after[i] <= limit for i, limit in limits.items())
        assert solution.after == model.of(solution.removed)
        assert not restorable(coupling, model, solution.removed, limits)
        if larger is not None:  # a smaller budget never gives a larger model, in what the budget is about
            assert any(solution.after[i] <= larger[i] for i in limits)
        larger = solution.after
    assert reached >= 12


@pytest.mark.parametrize("name", small.NETWORKS)
def test_no_axis_is_left_empty(name: str) -> None:
    coupling = coupling_of(name)
    model = cost_model(coupling)
    for seed in range(5):
        solution = solve(coupling, random_scores(coupling, seed), ratios=1.0)
        assert model.counts(solution.removed).all()


def test_a_share_that_rounds_to_nothing_names_the_smallest_budget() -> None:
    coupling = linear_coupling(3, 4, 2)
    before = cost_model(coupling).of(np.zeros(len(coupling.channels), bool))
    with pytest.raises(BudgetError, match="cannot be reached: the smallest is"):
        solved(coupling, Budget(params=1e-9).absolute(before))


def test_a_budget_of_one_removes_nothing() -> None:
    solution = solved(coupling_of("residual"), 1.0)
    assert not solution.removed.any()
    assert solution.before == solution.after


def test_the_lowest_scores_go_first() -> None:
    coupling = linear_coupling(5, 8, 2)
    scores = {coupling.groups[0].name: torch.tensor([3.0, 1, 4, 1.5, 9, 2.6, 5, 3.5])}
    solution = solve(coupling, scores, ratios=0.5)
    assert sorted(solution.units.tolist()) == [0, 1, 3, 5]
    by_budget = solve(coupling, scores, Budget(params=4 * 8 + 2))  # a unit costs 5 + 1 + 2, and 2 biases stay
    assert set(by_budget.units.tolist()) == {0, 1, 3, 5}


def test_scores_of_different_groups_compare_by_cost() -> None:
    coupling = linear_coupling(5, 4, 30, 2)
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
    coupling = linear_coupling(5, 16, 24, 2)
    solution = solve(
        coupling,
        random_scores(coupling),
        how.get("budget"),
        ratios=how.get("ratios"),
        constraints=Constraints(round_to=round_to),
    )
    assert solution.removed.any()
    slicer = coupling.slicer(solution.removed)
    for layer in ("l0", "l1"):
        assert slicer.count(coupling.parameter(f"{layer}.weight")[0]) % round_to == 0


@pytest.mark.parametrize("share", [0.9, 0.6, 0.3, 0.1])
def test_eased_multiples_are_met_and_none_could_come_back(share: float) -> None:
    coupling, constraints = linear_coupling(8, 160, 48, 4), Constraints(round_to=16, eased=True)
    given, model = random_scores(coupling, 0), cost_model(linear_coupling(8, 160, 48, 4))
    found = solve(coupling, given, share, constraints=constraints)
    assert found.after.params <= share * found.before.params
    pools = pools_of(coupling, channel_scores(coupling, given), coupling.groups, constraints, frozenset())
    assert [pool.quantum for pool in pools] == [16, 4]
    for pool in pools:
        kept = len(pool.order) - len(pool.gone(found.removed))
        assert kept % pool.quantum == 0 or kept in (1, 2, 4, 8)
        for step in pool.steps(found.removed)[:1]:
            back = found.removed.copy()
            back[step] = False
            assert model.of(back).params > share * found.before.params


def test_eased_multiples_ask_for_no_more_than_must_stay() -> None:
    coupling = linear_coupling(8, 160, 48, 4)
    for least in (3, 5, 9, 20):
        given = {"scores": random_scores(coupling, 0), "ratios": 1.0}
        plain, eased = (
            solve(coupling, **given, constraints=Constraints(round_to=n, min_keep=least, eased=n > 1)) for n in (1, 16)
        )
        assert plain.after == eased.after


def test_multiples_are_of_the_layer_not_of_its_units() -> None:
    coupling = coupling_of("residual")
    solution = solved(coupling, 0.5, round_to=4)
    slicer = coupling.slicer(solution.removed)
    for node, axes in coupling.values.items():
        if node.op == "get_attr" and str(node.target).startswith(("stem.0.w", "one.0.w", "two.0.w", "two.2.w")):
            assert slicer.count(axes[0]) % 4 == 0, node.target


@pytest.mark.parametrize("least", [1, 2, 3])
def test_every_group_keeps_some(least: int) -> None:
    coupling = coupling_of("residual")
    solution = solve(coupling, random_scores(coupling), ratios=1.0, constraints=Constraints(min_keep=least))
    for group in coupling.groups:
        kept = set(group.units.tolist()) - set(solution.units.tolist())
        assert len(kept) >= min(least, len(group.units))


@pytest.mark.parametrize("pattern", ["one.0", "one.*", "one.0.weight", "*.0", "*"])
def test_what_is_ignored_stays(pattern: str) -> None:
    coupling = coupling_of("residual")
    try:
        solution = solve(coupling, random_scores(coupling), ratios=0.7, constraints=Constraints(ignore=(pattern,)))
    except NothingToPruneError:
        assert pattern == "*"
        return
    slicer = coupling.slicer(solution.removed)
    assert not slicer.changed(coupling.parameter("one.0.weight")[0])
    assert slicer.changed(coupling.parameter("gate.1.weight")[0])


def test_patterns_that_match_nothing_warn() -> None:
    coupling = coupling_of("residual")
    scores = random_scores(coupling)
    with pytest.warns(IgnoredPatternWarning, match="ignore pattern 'layer9.*' matches no layer"):
        solve(coupling, scores, ratios=0.5, constraints=Constraints(ignore=("layer9.*",)))
    with pytest.warns(IgnoredPatternWarning, match="ratios pattern 'layer9.*' matches no group"):
        solve(coupling, scores, ratios={"layer9.*": 0.5, "default": 0.1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(coupling, scores, ratios=0.5, constraints=Constraints(ignore=("head", "one.*")))


def test_ratios_by_layer() -> None:
    coupling = coupling_of("residual")
    scores = random_scores(coupling)
    removed = solve(coupling, scores, ratios={"one.0": 0.5, "two.0": 0.25}).removed
    slicer = coupling.slicer(removed)
    left = {n: slicer.count(coupling.parameter(n)[0]) for n in ("stem.0.weight", "one.0.weight", "gate.1.weight")}
    assert left == {"stem.0.weight": 12, "one.0.weight": 4, "gate.1.weight": 6}
    removed = solve(coupling, scores, ratios={"one.0": 0.0, "default": 0.5}).removed
    slicer = coupling.slicer(removed)
    assert slicer.count(coupling.parameter("one.0.weight")[0]) == 8
    assert slicer.count(coupling.parameter("gate.1.weight")[0]) == 3


def test_a_group_s_own_name_comes_before_patterns() -> None:
    coupling = coupling_of("residual")
    twins = [g for g in coupling.groups if g.name.startswith("two.0")]
    assert len(twins) > 1
    ratios = {g.name: 0.0 if g is twins[0] else 0.5 for g in twins}
    units = set(solve(coupling, random_scores(coupling), ratios=ratios).units.tolist())
    assert not units & set(twins[0].units.tolist())
    assert all(units & set(g.units.tolist()) for g in twins[1:])


@pytest.mark.parametrize("kind", ["head", "head_dim", "channel"])
def test_kinds_of_unit(kind: str) -> None:
    coupling = coupling_of("transformer")
    solution = solve(coupling, random_scores(coupling), ratios=0.5, constraints=Constraints(kinds=(kind,)))
    gone = set(solution.units.tolist())
    assert gone
    assert {g.kind for g in coupling.groups if gone & set(g.units.tolist())} == {kind}


@pytest.mark.parametrize("what", ["params", "macs"])
@pytest.mark.parametrize("name", small.NETWORKS)
def test_the_smallest_budget_that_is_named_can_be_reached(name: str, what: str) -> None:
    coupling = coupling_of(name)
    with pytest.raises(BudgetError, match="cannot be reached: the smallest is") as caught:
        solved(coupling, Budget(**{what: 1}))
    smallest = int(re.search(r"the smallest is (\d+)", str(caught.value)).group(1))
    solution = solved(coupling, Budget(**{what: smallest}))
    assert getattr(solution.after, what) == smallest
    with pytest.raises(BudgetError, match=f"the smallest is {smallest} "):
        solved(coupling, Budget(**{what: smallest - 1}))
    assert re.search(r"Held by .+ \(\d+: .+\)", str(caught.value))


def test_what_holds_a_budget_is_named() -> None:
    coupling = coupling_of("residual")
    with pytest.raises(BudgetError, match=r"Held by .*min_keep, ignore or round_to"):
        solved(coupling, Budget(params=200), ignore=("two.*",))


@pytest.mark.parametrize("ratios", [1.5, -0.1, {"one.*": 2}, {"one.*": "half"}, float("nan")])
def test_malformed_ratios(ratios: Any) -> None:
    coupling = coupling_of("residual")
    with pytest.raises(BudgetError, match="a ratio is the share removed"):
        solve(coupling, random_scores(coupling), ratios=ratios)


def test_a_budget_or_ratios_not_both() -> None:
    coupling = coupling_of("residual")
    scores = random_scores(coupling)
    for options in ({}, {"budget": Budget(0.5), "ratios": 0.5}):
        with pytest.raises(BudgetError, match="either a budget or ratios"):
            solve(coupling, scores, **options)


def test_nothing_to_prune() -> None:
    _, frozen = prepared(nn.Linear(5, 5), (torch.randn(3, 5, dtype=torch.float64),))
    with pytest.raises(NothingToPruneError, match=r"fixed parts: .*the result of"):
        solve(frozen, {}, ratios=0.5)
    with pytest.raises(NothingToPruneError, match="no channel of this model can be removed"):
        solved(linear_coupling(5, 6, 2), 0.5, kinds=("head",))


def test_unusable_scores() -> None:
    coupling = linear_coupling(5, 6, 2)
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


def test_units_are_numbered_as_in_the_coupling() -> None:
    coupling = coupling_of("residual")
    solution = solved(coupling, 0.6)
    assert np.array_equal(coupling.units_of(solution.removed), solution.units)
    assert np.array_equal(coupling.removed_mask(solution.units), solution.removed)


def test_what_is_rescued_comes_in_multiples() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        h, g = m.a(x).relu().chunk(2, -1)
        return m.b(h) + m.c(g)

    torch.manual_seed(0)
    model = Fn(forward, a=nn.Linear(8, 64), b=nn.Linear(32, 4), c=nn.Linear(32, 4)).eval()
    with torch.no_grad():
        model.a.weight[:32] *= 0.01
    for target in ({"ratios": 0.6, "budget": None}, {"budget": 0.4}):
        pruned = compile_small(model, round_to=8, method="l1", **target)
        assert pruned.a.weight.shape[0] % 8 == 0


def test_the_smallest_share_that_is_named_can_be_asked_for() -> None:
    with pytest.raises(fxprune.BudgetError) as caught:
        compile_small(mlp(), budget=fxprune.Budget(macs=1))
    share = float(str(caught.value).split("the smallest is ")[1].split("(")[1].split(")")[0])
    assert fxprune.report(compile_small(mlp(), budget=fxprune.Budget(macs=share))).macs[1] > 0
    assert fxprune.Budget(params=0.29).limits(Cost(100, 0, 0)) == {0: 29}


def test_what_the_method_takes_no_unit_of_is_said_to_be_held_by_it() -> None:
    coupling = coupling_of("residual")
    stays = {group.name: torch.full((len(group.units),), STAYS) for group in coupling.groups[1:]}
    with pytest.raises(BudgetError, match=r"Held by .*: the method, which takes none of its units\)"):
        solve(coupling, random_scores(coupling) | stays, Budget(params=0.01))


def test_a_share_is_a_budget_of_parameters() -> None:
    coupling = coupling_of("residual")
    scores = random_scores(coupling)
    assert solve(coupling, scores, 0.5).after == solve(coupling, scores, Budget(params=0.5)).after
    with pytest.raises(BudgetError, match=r"must be a share such as 0\.5 or a fxprune\.Budget, got 'half'"):
        solve(coupling, scores, "half")  # type: ignore[arg-type]

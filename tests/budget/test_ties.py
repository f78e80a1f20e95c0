"""Channels that go in step: all ties hold at every budget, and the solver's promises are kept over bundles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fxprune.budget.budget import Budget
from fxprune.budget.constraints import Constraints
from fxprune.budget.cost import cost_model
from fxprune.budget.solver import channel_scores, solve
from fxprune.budget.ties import Ties, bundles_of, tie_costs
from fxprune.coupling.coupling import Coupling
from tests.support.pruning import linear_coupling, random_scores

BUDGETS = (0.95, 0.8, 0.6, 0.45, 0.3)


def coupling() -> Coupling:
    return linear_coupling(8, 24, 24, 12, 3)


def group(found: Coupling, index: int) -> np.ndarray:
    """Returns the channels of a group, ``[units]``."""
    return found.units[found.groups[index].units]


def tied(found: Coupling, *parts: tuple[np.ndarray, int], held: np.ndarray | None = None, number: int = 0) -> Ties:
    flags = np.zeros(len(found.channels), bool)
    flags[[] if held is None else held] = True
    ids = np.concatenate([part for part, _ in parts])
    weights = np.concatenate([np.full(len(part), weight) for part, weight in parts])
    order = np.argsort(ids)
    row = ids[order], weights[order]
    return Ties(flags, (), ((*row, number),)) if number else Ties(flags, (row,))


def gone(removed: np.ndarray, *parts: np.ndarray) -> list[int]:
    return [int(removed[part].sum()) for part in parts]


def test_two_groups_lose_as_many() -> None:
    found = coupling()
    a, b = group(found, 0), group(found, 1)
    constraints = Constraints(ties=tied(found, (a, 1), (b, -1)))
    sizes = []
    for share in BUDGETS:
        for seed in range(3):
            solution = solve(found, random_scores(found, seed), share, constraints=constraints)
            first, second = gone(solution.removed, a, b)
            assert first == second and solution.after.params <= share * solution.before.params
        sizes.append(solve(found, random_scores(found, 0), share, constraints=constraints).after.params)
    assert sizes == sorted(sizes, reverse=True)


def test_nothing_that_is_gone_could_come_back() -> None:
    found = coupling()
    a, b = group(found, 0), group(found, 1)
    constraints = Constraints(ties=tied(found, (a, 1), (b, -1)))
    model, scores = cost_model(found), random_scores(found, 1)
    solution = solve(found, scores, 0.5, constraints=constraints)
    limit = Budget(params=0.5).limits(solution.before)[0]
    for i in np.flatnonzero(solution.removed[a]):
        for j in np.flatnonzero(solution.removed[b]):
            back = solution.removed.copy()
            back[[a[i], b[j]]] = False
            assert model.of(back).params > limit


def test_several_of_one_go_with_one_of_another() -> None:
    found = coupling()
    a, c = group(found, 0), group(found, 2)  # 24 and 12
    for share in BUDGETS:
        removed = solve(
            found, random_scores(found, 0), share, constraints=Constraints(ties=tied(found, (a, 1), (c, -2)))
        ).removed
        first, second = gone(removed, a, c)
        assert first == 2 * second


def test_halves_of_one_group_and_the_best_of_each_stay() -> None:
    found = coupling()
    a = group(found, 0)
    scores = random_scores(found, 0)
    ties = tied(found, (a[:12], 1), (a[12:], -1))
    solution = solve(found, scores, 0.6, constraints=Constraints(ties=ties))
    for half in (a[:12], a[12:]):
        values = scores[found.groups[0].name].numpy()[np.isin(a, half)]
        kept = ~solution.removed[half]
        assert values[kept].min() > values[~kept].max()


def test_multiples_and_what_is_held() -> None:
    found = coupling()
    a, b = group(found, 0), group(found, 1)
    constraints = Constraints(ties=tied(found, (a, 1), held=b, number=4))
    for share in BUDGETS[:4]:
        first, second = gone(solve(found, random_scores(found, 0), share, constraints=constraints).removed, a, b)
        assert first % 4 == 0 and second == 0


def test_what_finds_no_partner_stays() -> None:
    found = coupling()
    a, c = group(found, 0), group(found, 2)
    bundles, bound = bundles_of(
        found, tied(found, (a, 1), (c, -1)), np.arange(len(found.channels), dtype=float), found.groups
    )
    assert len(bundles) == 1 and bundles[0].rows.shape == (12, 2) and bundles[0].each == (1, 1)
    best = set(a[-12:].tolist())  # by their values
    assert best.isdisjoint(bundles[0].rows.reshape(-1).tolist()) and bound[a].all()


@pytest.mark.parametrize("quantum", [2, 4])
def test_rounding_holds_for_each_side(quantum: int) -> None:
    found = coupling()
    a, b = group(found, 0), group(found, 1)
    constraints = Constraints(round_to=quantum, ties=tied(found, (a, 1), (b, -1)))
    for share in BUDGETS:
        first, second = gone(solve(found, random_scores(found, 2), share, constraints=constraints).removed, a, b)
        assert first == second and first % quantum == 0


def test_a_ratio_is_that_of_the_least() -> None:
    found = coupling()
    a, b = group(found, 0), group(found, 1)
    names = [found.groups[i].name for i in (0, 1)]
    constraints = replace(Constraints(), ties=tied(found, (a, 1), (b, -1)))
    ratios = {names[0]: 0.5, names[1]: 0.25}
    assert gone(solve(found, random_scores(found, 0), ratios=ratios, constraints=constraints).removed, a, b) == [6, 6]


def test_what_ties_cost() -> None:
    """Halves of which one is worth little lose the best of that instead of others; groups of equal count choose freely."""
    found = coupling()
    a, b = group(found, 0), group(found, 1)
    scores = random_scores(found, 0)
    scores[found.groups[0].name] = torch.cat([torch.full((12,), 1.0), torch.full((12,), 3.0)])
    removed = np.zeros(len(found.channels), bool)
    removed[[*a[:6], *a[12:18]]] = True
    values = channel_scores(found, scores)
    values[b] = 1.0
    (cost,) = tie_costs(found, tied(found, (a[:12], 1), (a[12:], -1)), values, found.groups, removed)
    assert cost.groups == (found.groups[0].name,) and cost.gone == 12
    assert cost.share == pytest.approx((6 * 1 + 6 * 3 - 12 * 1) / (12 * 1 + 12 * 3))
    removed[:] = False
    removed[[*a[:6], *b[:6]]] = True
    (cost,) = tie_costs(found, tied(found, (a, 1), (b, -1)), values, found.groups, removed)
    assert cost.gone == 12 and cost.share == 0

"""Positions that a router chose: experts go where all that reads the positions is known, and stay elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.algebra.channels import Mask
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.twin.interpreter import Run
from tests.models.fn import Fn
from tests.models.ops.case import Case
from tests.models.ops.positions import CASES, COUNT, GOING, LAYER, T, by_sorting, by_sorting_twice, one_hot, routed
from tests.support.marks import but_slow
from tests.support.pruning import certify, check, check_case, coupled, groups_of, prepared, removal


@pytest.mark.parametrize("case", but_slow(CASES, CASES[::3]), ids=lambda c: c.name)
def test_rule(case: Case) -> None:
    check_case(case)


def _prepared(function: Callable[..., Tensor]) -> tuple[Coupling, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    args = (torch.randn(T, dtype=torch.float64),)
    return prepared(routed(function)(), args)[1], args


def _without(coupling: Coupling, experts: list[int]) -> Mask:
    (group,) = coupling.groups
    return coupling.removed_mask(group.units[experts])


@pytest.mark.parametrize("experts", [[0], [5], [2, 3], [0, 2, 4], [0, 1, 3, 4]])
@pytest.mark.parametrize("case", GOING, ids=lambda c: c.name)
@pytest.mark.slow
def test_any_experts_may_go_down_to_those_that_are_chosen(case: Case, experts: list[int]) -> None:
    coupling = coupled(case)
    certificate = certify(coupling, case.args(seed=2), _without(coupling, experts))
    assert certificate.verified, certificate


@pytest.mark.parametrize("forward", [by_sorting, by_sorting_twice])
def test_tokens_sorted_by_expert(forward: Callable[..., Tensor]) -> None:
    pytest.importorskip("transformers.integrations.moe")
    coupling, args = _prepared(forward)
    assert groups_of(coupling) == [LAYER]
    check(coupling, args)


def test_the_twin_is_the_model_without_the_experts() -> None:
    """The oracle itself: a model built with fewer experts gives what the twin gives."""
    torch.manual_seed(0)
    full = routed(_one_hot_of_those_there)().double()
    x = torch.randn(T, dtype=torch.float64)
    coupling = prepared(full, (x,))[1]
    kept = [0, 2, 3, 5]
    small = Fn(_one_hot_of_those_there, gate=nn.Linear(5, 4), table=nn.Parameter(full.table.detach()[kept])).double()
    with torch.no_grad():
        small.gate.weight.copy_(full.gate.weight[kept])
        small.gate.bias.copy_(full.gate.bias[kept])
    (twin,) = Run(Selection(coupling, _without(coupling, [1, 4])))([x])
    torch.testing.assert_close(twin, small(x))


def _one_hot_of_those_there(m: Any, x: Tensor) -> Tensor:
    weight, where = m.gate(x).softmax(-1).topk(2)
    weight = weight / weight.sum(-1, keepdim=True)
    return torch.einsum("bnk,bnke->bne", weight, F.one_hot(where, len(m.table)).to(x.dtype)) @ m.table


def test_fewer_than_are_chosen_never_stay() -> None:
    coupling, _ = _prepared(one_hot)
    for share in (0.5, 0.9, 1.0):
        assert int(removal(coupling, 0, share)[coupling.units].sum()) <= COUNT - 2


def test_a_mask_that_leaves_too_few_is_not_a_number() -> None:
    """No plan is such; a score may try it."""
    coupling, args = _prepared(one_hot)
    (result,) = Run(Selection(coupling, _without(coupling, [0, 1, 2, 3, 5])))(args)
    assert result.isnan().any()


def test_choosing_all_of_them_keeps_them() -> None:
    coupling, _ = _prepared(
        lambda m, x: torch.zeros_like(m.gate(x)).scatter(-1, m.gate(x).topk(COUNT)[1], 1.0) @ m.table
    )
    assert coupling.groups == ()

"""Values made from literals: free in every static dimension, each reader takes what it needs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.models.fn import Fn
from tests.models.ops.case import Case
from tests.models.ops.create import CASES, GROUPS, T
from tests.support.marks import but_slow
from tests.support.pruning import certify, check_case, coupled, groups_of, prepared, removal


@pytest.mark.parametrize("case", but_slow(CASES, CASES[::3]), ids=lambda c: c.name)
def test_rule(case: Case) -> None:
    check_case(case)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: torch.rand(6, dtype=x.dtype),
        lambda x: torch.randn(6, dtype=x.dtype),
        lambda x: torch.randint(0, 3, (6,)).to(x.dtype),
    ],
)
def test_random_values_are_cut_to_what_is_left(make) -> None:
    x = torch.randn(T, dtype=torch.float64)
    _, coupling = prepared(Fn(lambda m, x: m.b(m.a(x) + 0 * make(x)), a=nn.Linear(5, 6), b=nn.Linear(6, 2)), (x,))
    assert groups_of(coupling) == GROUPS
    assert certify(coupling, (x,), removal(coupling, 0, 0.5)).verified


def test_each_reader_of_a_constant_takes_its_own_part() -> None:
    coupling = coupled(next(c for c in CASES if c.name == "shared by two layers"))
    assert len(coupling.groups) == 2

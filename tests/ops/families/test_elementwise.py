"""Elementwise work: broadcast, and unite axis by axis."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.models.fn import Fn
from tests.models.ops.case import Case
from tests.models.ops.elementwise import BINARY, CASES, UNARY, Many, Unary
from tests.support.marks import but_slow
from tests.support.pruning import certify, check, check_case, groups_of, prepared, removal


@pytest.mark.parametrize(("functions", "operands"), [(UNARY, 1), (BINARY, 2)], ids=["unary", "binary"])
@pytest.mark.slow
def test_every_op_passes_channels_on(functions: dict[str, Callable[..., Tensor]], operands: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 7, 5, dtype=torch.float64)
    _, coupling = prepared(Many(list(functions.values()), operands), (x,))
    expected = []
    for i in range(len(functions)):
        makers = " ".join(f"makers.{i}.{k}.weight[0] makers.{i}.{k}.bias[0]" for k in range(operands))
        expected.append(f"6 channel: {makers} readers.{i}.weight[1]")
    assert sorted(groups_of(coupling)) == sorted(expected)
    assert not coupling.statistics
    check(coupling, (x,))


@pytest.mark.parametrize("case", but_slow(CASES, CASES[::3]), ids=lambda c: c.name)
def test_rule(case: Case) -> None:
    check_case(case)


@pytest.mark.parametrize("function", [torch.rand_like, torch.randn_like, lambda x: torch.bernoulli(x, 0.5)])
def test_random_values_have_the_shape_of_what_is_left(function: Unary) -> None:
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    model = Fn(lambda m, x: m.b(m.a(x) + 0 * function(m.a(x))), a=nn.Linear(5, 6), b=nn.Linear(6, 2))
    _, coupling = prepared(model, (x,))
    assert groups_of(coupling) == ["6 channel: a.weight[0] a.bias[0] b.weight[1]"]
    assert certify(coupling, (x,), removal(coupling, 0, 0.5)).verified

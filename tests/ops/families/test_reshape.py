"""Reshape, permute, expand, repeat: labels move, split and repeat."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

from tests.models.ops.case import Case
from tests.models.ops.reshape import CASES
from tests.support.compiling import couple_fn
from tests.support.marks import but_slow
from tests.support.pruning import certify, check_case, removal
from tests.support.tensors import random


@pytest.mark.parametrize("case", but_slow(CASES, CASES[::3]), ids=lambda c: c.name)
def test_rule(case: Case) -> None:
    check_case(case)


def test_one_size_serves_windows_here_and_heads_there() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        b = len(x)
        windows = m.w(m.a(x).reshape(b * 4, 12).relu()).reshape(b, 8)
        return windows, m.e(m.d(x[:, 0]).reshape(b * 4, 3).sin().reshape(b, 12))

    parts = {"a": nn.Linear(5, 12), "w": nn.Linear(12, 2), "d": nn.Linear(5, 12), "e": nn.Linear(12, 2)}
    args = (random(3, 4, 5),)
    coupling = couple_fn(forward, *args, **parts)
    assert {len(group.units) for group in coupling.groups} == {12, 4, 3}
    for share in (0.3, 0.5, 1.0):
        assert certify(coupling, args, removal(coupling, 0, share)).verified is True

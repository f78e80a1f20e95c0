"""Cat, stack, split, slice, select, index, pad, roll: labels are concatenated, cut and picked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.ops.case import Case
from tests.models.ops.join import CASES
from tests.support.compiling import couple_fn
from tests.support.marks import but_slow
from tests.support.pruning import certify, check_case, groups_of, removal
from tests.support.tensors import random


@pytest.mark.parametrize("case", but_slow(CASES, CASES[::3]), ids=lambda c: c.name)
def test_rule(case: Case) -> None:
    check_case(case)


@pytest.mark.parametrize("split", [lambda y: y.split([6, 0], -1), lambda y: (y[:, :6], y[:, 6:])])
def test_axes_of_size_zero(split: Callable[[Tensor], Any]) -> None:
    args = (random(3, 5),)
    coupling = couple_fn(lambda m, x: m.b(torch.cat([*split(m.a(x))], -1)), *args, a=nn.Linear(5, 6), b=nn.Linear(6, 2))
    assert groups_of(coupling) == ["6 channel: a.weight[0] a.bias[0] b.weight[1]"]
    assert certify(coupling, args, removal(coupling, 0, 0.5)).verified is True

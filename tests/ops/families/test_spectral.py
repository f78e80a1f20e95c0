"""Fourier transforms over time and space, and complex numbers: channels beside what is transformed pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxprune
from tests.models.fn import Fn
from tests.models.ops.case import Case
from tests.models.ops.spectral import CASES
from tests.support.marks import but_slow
from tests.support.pruning import check_case
from tests.support.tensors import random


@pytest.mark.parametrize("case", but_slow(CASES, CASES[::3]), ids=lambda c: c.name)
def test_rule(case: Case) -> None:
    check_case(case)


@pytest.mark.filterwarnings("error:Casting complex values to real")
@pytest.mark.parametrize("method", but_slow(["l2", "fpgm", "ippro", "taylor", "kl", "joint"], quick=("ippro",)))
def test_criteria_see_both_parts_of_a_complex_weight(method: str) -> None:
    model = Fn(
        lambda m, x: m.b(torch.view_as_real(torch.nn.functional.linear(torch.complex(m.a(x), x), m.w)).sum((1, 3))),
        a=nn.Linear(6, 6),
        w=nn.Parameter(torch.complex(torch.zeros(8, 6), torch.arange(1.0, 9)[:, None].expand(8, 6))),
        b=nn.Linear(8, 3),
    ).eval()
    batches = [(random(5, 4, 6).float(), torch.randint(0, 3, (5,))) for _ in range(2)]
    found = fxprune.compile(model, batches, 0.8, method=method, recover="sequential", progress=False)
    report = fxprune.report(found)
    assert report.verified
    if method == "l2":
        assert dict(found.named_parameters())["w"].imag.min() > 1

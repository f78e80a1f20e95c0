"""The stages by hand: what they take, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxprune
from fxprune.coupling.coupling import Coupling

DATA = [(torch.randn(8, 5, generator=torch.Generator().manual_seed(seed)),) for seed in range(3)]


@pytest.fixture(scope="module")
def coupling() -> Coupling:
    torch.manual_seed(0)
    layers = nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 2)
    return fxprune.couple(fxprune.capture(nn.Sequential(*layers).eval(), DATA[0]))


@pytest.mark.parametrize("method", ["mean_shift", "covariance", "sequential", "reconstruct"])
def test_inputs_that_can_be_gone_through_once_count_as_often_as_needed(coupling: Coupling, method: str) -> None:
    removed = coupling.removed_mask([0, 1, 9])
    whole = fxprune.recover(coupling, removed, DATA, method).tensors
    once = fxprune.recover(coupling, removed, (batch for batch in DATA), method).tensors
    assert whole.keys() == once.keys() and len(whole) >= 2
    assert all(torch.equal(whole[name], once[name]) for name in whole)


@pytest.mark.parametrize("method", ["variance", "joint", "hrank"])
def test_so_do_those_of_scores(coupling: Coupling, method: str) -> None:
    whole, once = (fxprune.score(coupling, data, method) for data in (DATA, iter(DATA)))
    assert all(torch.equal(whole[name], once[name]) for name in whole)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda flags: flags.astype(int), r"expected a flag for each channel id.* got int64\["),
        (lambda flags: flags[:3], r"got bool\[3\]"),
        (lambda flags: flags.tolist(), "got list"),
        (lambda flags: None, "got NoneType"),
        (lambda flags: np.ones_like(flags), "channel 0 stands for what can never go"),
        (lambda flags: np.arange(len(flags)) > 0, "has lost all its channels"),
    ],
)
def test_flags_that_are_none(coupling: Coupling, change: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fxprune.rewrite(coupling, change(coupling.removed_mask([0])))

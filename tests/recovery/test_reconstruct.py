"""Reconstruction teaches the layers before as well, and keeps only what held-out batches gain from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxprune.capturing.captured import capture
from fxprune.compiler.by_hand import recover
from fxprune.coupling.interpreter import couple
from tests.models.fn import Fn
from tests.support.recovering import chain, pair


def test_reconstruct_teaches_the_layers_before_as_well() -> None:
    """A kept unit of ``a`` can move towards a removed one only if ``a`` itself learns."""
    build = lambda: chain(nn.Linear(6, 8), nn.Linear(8, 5))  # noqa: E731
    case = pair(build, (64, 6), lambda model: None, [5, 6, 7], count=16)
    found = recover(case.coupling, case.removed, case.batches, "reconstruct")
    before = recover(case.coupling, case.removed, case.batches, "sequential")
    assert "a.weight" in found.tensors and "a.weight" not in before.tensors
    assert case.error("reconstruct") < case.error("sequential")


@pytest.mark.slow
def test_reconstruct_takes_as_many_steps_from_one_large_batch() -> None:
    build = lambda: chain(nn.Linear(6, 8), nn.Linear(8, 5))  # noqa: E731
    case = pair(build, (512, 6), lambda model: None, [5, 6, 7], count=1)
    whole = recover(case.coupling, case.removed, case.batches, "reconstruct").tensors
    parts = [(x,) for x in case.batches[0][0].split(32)]
    small = recover(case.coupling, case.removed, parts, "reconstruct").tensors
    assert case.error("reconstruct") < case.error("sequential")
    assert all(torch.allclose(whole[name], small[name]) for name in small)


def test_reconstruct_keeps_what_it_started_from_where_held_out_batches_do_not_gain() -> None:
    """Seven batches of one function and one of its inputs' negatives, which is held out: nothing learnt helps there."""
    build = lambda: chain(nn.Linear(6, 8), nn.Linear(8, 5))  # noqa: E731
    case = pair(build, (32, 6), lambda model: None, [5, 6, 7], count=8)
    with torch.no_grad():
        case.batches[:7] = [(x.abs() * 10,) for (x,) in case.batches[:7]]
        case.batches[7] = (-case.batches[7][0].abs(),)
    found = recover(case.coupling, case.removed, case.batches, "reconstruct").tensors
    before = recover(case.coupling, case.removed, case.batches, "sequential").tensors
    assert found.keys() == before.keys()
    assert all(torch.equal(found[name], before[name]) for name in before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reconstruct_leaves_gradients_and_precision_alone(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = chain(nn.Linear(6, 8), nn.Linear(8, 5)).to(dtype).eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [(torch.randn(32, 6, dtype=dtype),) for _ in range(3)]
    coupling = couple(capture(model, batches[0]))
    removed = np.zeros(len(coupling.channels), bool)
    removed[coupling.units[:3]] = True
    found = recover(coupling, removed, batches, "reconstruct").tensors
    assert all(value.dtype == dtype and not value.requires_grad for value in found.values())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_reconstruct_goes_through_branches_that_meet_behind_a_target() -> None:
    """The value before both branches is read again behind the first branch's sum: its part of the graph is gone then."""

    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.a(x).relu()
        y = x + m.b(h)
        return y + m.c(h * 2) + m.b2(m.a2(y).relu())

    layers = {
        "a": nn.Linear(6, 8),
        "b": nn.Linear(8, 6),
        "c": nn.Linear(8, 6),
        "a2": nn.Linear(6, 8),
        "b2": nn.Linear(8, 6),
    }
    case = pair(lambda: Fn(forward, **layers), (64, 6), lambda model: None, [5, 6, 7], count=16)
    assert case.error("reconstruct") <= case.error("sequential") + 1e-12

"""The ridge that each layer takes, by samples that are held out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.recovery.consumers import find_consumers
from fxprune.recovery.measuring import measure, split
from fxprune.recovery.moments import Moments
from fxprune.recovery.ridges import RIDGES, best_ridge

WIDE = 48


def noisy(samples: int, batches: int = 4, seed: int = 1) -> list[Tensor]:
    """Returns data of which a few directions carry most, and all others a little."""
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(4, WIDE, generator=torch.Generator().manual_seed(0))
    made = [torch.randn(samples, 4, generator=draw) @ mixed for _ in range(batches)]
    return [x + torch.randn(x.shape, generator=draw) for x in made]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDE, WIDE), nn.ReLU(), nn.Linear(WIDE, 5)).eval()


def error(model: nn.Sequential, pruned: Any) -> float:
    fresh = torch.cat(noisy(500, seed=2))
    with torch.no_grad():
        return float((pruned(fresh) - model(fresh)).square().mean())


def compiled(model: nn.Module, data: list[Tensor], **options: Any) -> Any:
    return fxprune.compile(model, data, ratios=0.5, method="l2", progress=False, **options)


@pytest.mark.parametrize("recover", ["covariance", "sequential"])
def test_few_samples_are_not_believed(recover: Any) -> None:
    model, data = network(), noisy(8)
    alone, fixed = (error(model, compiled(model, data, recover=recover, holdout=0, **r)) for r in ({}, {"ridge": 1e-2}))
    assert alone < 0.9 * fixed


def test_many_samples_are_believed_as_they_are() -> None:
    model, data = network(), noisy(2000)
    alone, fixed = compiled(model, data), compiled(model, data, ridge=1e-2)
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), fixed.parameters(), strict=True))


def test_what_is_held_out_is_put_back() -> None:
    model, data = network(), noisy(9)
    coupling = fxprune.couple(fxprune.capture(model, (data[0],)))
    removed = coupling.removed_mask(range(10))
    (consumer,), _ = find_consumers(fxprune.Selection(coupling, removed))
    dense = fxprune.Selection.nothing(coupling)
    inputs = [(x,) for x in data]
    (((_, whole),),) = measure(dense, [consumer], inputs, covariance=True, memory_limit=1 << 30)
    (((_, parts),),) = measure(dense, [consumer], inputs, covariance=True, memory_limit=1 << 30, held={consumer: 4})
    assert parts.held is not None and (parts.count, parts.held.count) == (27, 9)
    parts.whole()
    assert parts.held is None and parts.count == whole.count == 36
    assert torch.allclose(parts.xx, whole.xx, rtol=1e-6) and torch.allclose(parts.mean_x, whole.mean_x, rtol=1e-6)


def test_the_ridge_is_the_best_of_those_tried() -> None:
    """Against numpy, which fits and judges on the samples themselves."""
    draw = torch.Generator().manual_seed(0)
    x, t = torch.randn(40, 12, generator=draw), torch.randn(40, 3, generator=draw)
    x, t = x.double(), (t + 2 * x[:, :3]).double()
    coupling = fxprune.couple(fxprune.capture(network(), (torch.randn(2, WIDE),)))
    (consumer,), _ = find_consumers(fxprune.Selection(coupling, coupling.removed_mask([0])))
    consumer = replace(consumer, kept=np.ones((1, 12), bool))
    moments, held = Moments(), Moments()
    moments.add(x[:30, None], t[:30, None])
    held.add(x[30:, None], t[30:, None])
    moments.held = held

    def judged(ridge: float) -> float:
        a, b = x[:30].numpy(), t[:30].numpy()
        mean_a, mean_b = a.mean(0), b.mean(0)
        a, b = a - mean_a, b - mean_b
        gram = a.T @ a
        gain = np.linalg.solve(gram + ridge * np.trace(gram) / 12 * np.eye(12), a.T @ b)
        return float(((x[30:].numpy() - mean_a) @ gain - (t[30:].numpy() - mean_b)).__pow__(2).sum())

    assert best_ridge(consumer, [(slice(None), moments)], 0.1) == min((0.1 * each for each in RIDGES), key=judged)


@pytest.mark.parametrize(
    ("batches", "number", "fit"), [(1, 0, 6), (3, 2, 6), (4, 0, 8), (4, 3, 0), (9, 7, 0), (9, 8, 8)]
)
def test_whole_batches_are_held_out_where_there_are_enough(batches: int, number: int, fit: int) -> None:
    assert split(8, number, batches) == fit


def test_a_ridge_is_a_number_or_auto() -> None:
    with pytest.raises(ValueError, match="ridge must be a positive share"):
        compiled(network(), noisy(8), ridge="best")

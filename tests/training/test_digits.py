"""The whole way on real data: half of the MACs gone, and the accuracy back to within a point."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import fxprune
from fxprune.contrib import demo
from fxprune.runtimes.setting import threads_set
from fxprune.training import Recipe, finetune, retrain
from tests.support.training import digest

RIGHT = Recipe(optimizer="sgd", lr=0.05, nesterov=True, weight_decay=5e-4, warmup=1.0, batch_size=32)


@pytest.fixture(scope="module")
def digits() -> Iterator[tuple[demo.Digits, nn.Module, fxprune.PrunedModule]]:
    """scikit-learn's digits, a dense residual network that knows them, and half of it."""
    with threads_set(1):
        data = demo.load_digits()
        model = demo.make_model(width=8)
        history = finetune(model, TensorDataset(*data.train), recipe=RIGHT, epochs=5, progress=False)
        losses = [epoch.loss for epoch in history.epochs]
        assert losses[-1] < 0.2 * losses[0]
        half = fxprune.compile(
            model.eval(), demo.batches(data.train), fxprune.Budget(macs=0.5), progress=False, recover=None
        )
        yield data, model, half


@pytest.mark.slow
def test_half_of_the_macs_gone_recovers_to_within_a_point(digits: Any) -> None:
    data, model, half = digits
    pruned = copy.deepcopy(half)
    macs = fxprune.report(pruned).macs
    assert macs[1] <= 0.5 * macs[0]
    dense, raw, before = demo.accuracy(model, data.test), demo.accuracy(pruned, data.test), digest(model)
    assert dense > 97.0
    assert raw < dense - 10.0
    model.train()
    history = finetune(
        pruned,
        TensorDataset(*data.train),
        teacher=model,
        epochs=5,
        lr=3e-3,
        batch_size=32,
        validation=[data.test],
        progress=False,
    )
    assert all(module.training for module in model.modules())
    assert digest(model) == before
    tuned = demo.accuracy(pruned, data.test)
    assert tuned >= dense - 1.0
    assert 100 * history.before["accuracy"] == pytest.approx(raw, abs=1e-3)
    assert 100 * history.epochs[-1].metrics["accuracy"] == pytest.approx(tuned, abs=1e-3)
    assert not any(module.training for module in pruned.modules())
    print(f"dense {dense:.2f} %, half {raw:.2f} %\n{history}")


@pytest.mark.slow
def test_retrain_forgets_the_weights_and_learns_anew(digits: Any) -> None:
    data, _, half = digits
    one, other = copy.deepcopy(half), copy.deepcopy(half)
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            tensor.zero_()
    for pruned in (one, other):
        history = retrain(
            pruned, TensorDataset(*data.train), recipe=RIGHT, epochs=2, validation=[data.test], progress=False
        )
    assert digest(one) == digest(other)  # nothing of the old weights is left
    assert history.before["accuracy"] < 0.5
    assert history.epochs[-1].metrics["accuracy"] > 0.85

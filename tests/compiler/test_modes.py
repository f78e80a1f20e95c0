"""A pruned model trains as the original does, which an exported program cannot."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from tests.models.fn import Fn
from tests.models.libraries import swin
from tests.support.compiling import compile_verified
from tests.support.weights import randomise


def test_trains_saves_and_switches_modes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12, momentum=None), nn.Dropout(0.5), nn.Conv2d(12, 4, 1))
    pruned = compile_verified(model.eval(), [torch.randn(4, 3, 8, 8)])
    norm, x = pruned.get_submodule("1"), torch.randn(4, 3, 8, 8)
    assert norm.momentum is None and len(norm.running_mean) < 12
    still = pruned(x)
    mean = norm.running_mean.clone()
    pruned.train()
    assert not torch.equal(pruned(x), pruned(x))
    assert not torch.equal(norm.running_mean, mean)
    pruned.eval()
    assert torch.equal(pruned(x), pruned(x)) and not torch.equal(pruned(x), still)
    buffer = io.BytesIO()
    torch.save(pruned, buffer)
    assert not any("fxprune" in node.meta for node in pruned.graph.nodes)


@pytest.mark.slow
def test_random_branches_are_random_again_in_the_pruned_model() -> None:
    torch.manual_seed(0)
    model = swin(depths=[1, 1], num_heads=[2, 2], window_size=[2, 2], attention_dropout=0.3, stochastic_depth_prob=0.9)
    x = torch.randn(8, 3, 16, 16)
    randomise(model.eval(), 0, (x,))
    pruned = compile_verified(model, [x], 0.7)
    assert torch.equal(pruned(x), pruned(x))
    pruned.train()
    assert not torch.equal(pruned(x), pruned(x))
    kinds = {type(module).__name__ for module in pruned.modules()}
    assert "StochasticDepth" in kinds


class Resting(nn.BatchNorm1d):
    """Stays in evaluation mode."""

    def train(self, mode: bool = True) -> Resting:
        return super().train(False)


CONSTANTS: dict[str, tuple[nn.Module, Any, str]] = {
    "batch norm": (nn.BatchNorm1d(6), fxprune.TrainingWarning, "in training branch.3 would normalise by the batch"),
    "batch norm that rests": (Resting(6), fxprune.GradientWarning, "branch.3.bias hold what the branch made of them"),
    "relu": (nn.ReLU(), fxprune.GradientWarning, "branch.2.bias hold what the branch made of them"),
    "the bias itself": (nn.Dropout(0.1), None, "constants"),
}


@pytest.mark.parametrize("last", CONSTANTS)
def test_a_constant_that_would_train_in_another_way_is_warned_of(last: str) -> None:
    torch.manual_seed(0)
    norm, kind, text = CONSTANTS[last]
    branch = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6), copy.deepcopy(norm))
    model = Fn(lambda m, x: m.o(x + m.branch(x)), branch=branch, o=nn.Linear(6, 2)).eval()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        pruned = fxprune.compile(
            model,
            [torch.randn(5, 6)],
            ratios={"branch.0": 1.0, "default": 0.0},
            min_keep=0,
            recover=None,
            progress=False,
        )
    report = fxprune.report(pruned)
    assert report.collapsed
    assert [w.category for w in seen if text in str(w.message)] == ([kind] if kind else [])
    assert any(text in note for note in report.notes) == (kind is not None)

"""A computed weight that takes the place of others learns what these learnt, or it is told."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import fxprune


class Made(nn.Linear):
    """Computes the weight that acts from its own."""

    def __init__(self, make: Callable[[Any], Tensor]) -> None:
        super().__init__(12, 12)
        self.gain, self.make = nn.Parameter(torch.rand(12, 1) + 0.5), make

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.make(self), self.bias)


class Step(nn.Module):
    """A parametrization by a function; it may have two factors of a product to add."""

    def __init__(self, step: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.step, self.a, self.b = step, nn.Parameter(torch.randn(12, 2)), nn.Parameter(torch.randn(2, 12))

    def forward(self, weight: Tensor) -> Tensor:
        return self.step(self, weight)


def unit(weight: Tensor) -> Tensor:
    return weight / weight.norm(dim=1, keepdim=True)


def without_gradient(m: Made) -> Tensor:
    with torch.no_grad():
        return unit(m.weight)


def straight_through(weight: Tensor) -> Tensor:
    return weight + (weight.sign() * weight.abs().mean() - weight).detach()


def parametrized(step: Callable[[Any, Tensor], Tensor], *, frozen: bool = False) -> nn.Module:
    layer = parametrize.register_parametrization(nn.Linear(12, 12), "weight", Step(step))
    layer.parametrizations.weight.original.requires_grad_(not frozen)
    return layer


def network(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), layer, nn.ReLU(), nn.Linear(12, 3)).eval()


def compiled(layer: nn.Module, recover: str | None = None) -> nn.Module:
    return fxprune.compile(network(layer), [torch.randn(64, 6)], 0.6, recover=recover, progress=False)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


FROZEN: dict[str, Any] = {
    "under no_grad": lambda: Made(without_gradient),
    "detached": lambda: Made(lambda m: unit(m.weight).detach()),
    "parametrization": lambda: parametrized(lambda step, weight: (weight * 2).detach()),
    "frozen parameter": lambda: Made(lambda m: unit(m.weight.detach())).requires_grad_(False),
}


@pytest.mark.parametrize("recover", [None, "covariance", "sequential"])
@pytest.mark.parametrize("kind", FROZEN)
def test_what_has_no_gradient_gets_none(kind: str, recover: str | None, tmp_path: Path) -> None:
    pruned = compiled(FROZEN[kind](), recover)
    fxprune.save(pruned, tmp_path / "saved")
    for each in (pruned, fxprune.load(tmp_path / "saved")):
        each(torch.randn(4, 6)).sum().backward()
        assert each.get_parameter("2.weight").grad is None
        assert each.get_parameter("0.weight").grad is not None
        assert not each.get_parameter("2.weight").requires_grad
    assert not any("stops on the way" in note for note in fxprune.report(pruned).notes)


ALIKE: dict[str, Any] = {
    "by the chain rule": lambda: Made(lambda m: unit(m.weight)),
    "straight through": lambda: Made(lambda m: straight_through(m.weight)),
    "straight-through parametrization": lambda: parametrized(lambda step, weight: straight_through(weight)),
    "low-rank part": lambda: parametrized(lambda step, weight: weight + step.a @ step.b),
}


@pytest.mark.parametrize("kind", ALIKE)
def test_what_follows_its_gradient_is_no_matter(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", fxprune.GradientWarning)
        pruned = compiled(ALIKE[kind]())
    assert pruned.get_parameter("2.weight").requires_grad


def test_a_straight_through_weight_has_the_gradient_of_the_model() -> None:
    layer = Made(lambda m: straight_through(m.weight))
    model, x = network(layer).double(), torch.randn(4, 6, dtype=torch.float64)
    nothing_removed = fxprune.compile(model, [x], ratios={"default": 0.0}, recover=None, progress=False)
    for each in (model, nothing_removed):
        each(x).pow(2).sum().backward()
    assert torch.allclose(nothing_removed.get_parameter("2.weight").grad, layer.weight.grad)


UNLIKE: dict[str, Any] = {
    "detached statistic": lambda: Made(lambda m: m.weight / m.weight.norm(dim=1, keepdim=True).detach()),
    "only the gain": lambda: Made(lambda m: unit(m.weight.detach()) * m.gain),
    "only the low-rank part": lambda: parametrized(lambda step, weight: weight + step.a @ step.b, frozen=True),
    "sign": lambda: parametrized(lambda step, weight: weight.sign()),
}


@pytest.mark.parametrize("kind", UNLIKE)
def test_what_has_a_part_of_its_gradient_is_told(kind: str) -> None:
    with pytest.warns(fxprune.GradientWarning, match=r"whose gradient stops on the way .* 2.weight"):
        pruned = compiled(UNLIKE[kind]())
    assert any("stops on the way" in note for note in fxprune.report(pruned).notes)


def test_a_weight_that_learns_in_one_of_its_uses_learns_there() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.o = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.linear(self.a(x).relu(), straight_through(self.b.weight))
            with torch.no_grad():
                again = straight_through(self.b.weight)
            return self.o(F.linear(x.relu(), again))

    model, x = Twice().double().eval(), torch.randn(4, 6, dtype=torch.float64)
    pruned = fxprune.compile(model, [x], ratios={"default": 0.0}, recover=None, progress=False)
    assert any("b.weight (Linear)" in note and "plain" in note for note in fxprune.report(pruned).notes)
    for each in (model, pruned):
        each(x).pow(2).sum().backward()
    assert torch.allclose(pruned.get_parameter("b.weight").grad, model.b.weight.grad)

"""Norms and means over fewer channels: what is always zero counts, and weights are fitted where something else goes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.support.tensors import random


class HandWritten(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


class Gate(nn.Module):
    """A gate from the mean of all channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (3 * x.mean(-1, keepdim=True)).sigmoid()


class Shared(nn.Module):
    """A weight that is read twice cannot take the factor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) + x * self.norm.weight


class Network(nn.Module):
    def __init__(self, norm: nn.Module, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.act, self.norm = nn.Linear(8, 32), activation or nn.Identity(), norm
        self.b, self.o = nn.Linear(32, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.b(self.norm(self.act(self.a(x)))).relu())


NORMS: dict[str, Callable[[], nn.Module]] = {
    "RMS norm": lambda: nn.RMSNorm(32),
    "RMS norm with a large eps": lambda: nn.RMSNorm(32, eps=0.1),
    "RMS norm without weight": lambda: nn.RMSNorm(32, elementwise_affine=False),
    "RMS norm whose weight is shared": lambda: Shared(32),
    "written by hand": lambda: HandWritten(32),
    "mean": Gate,
}


def network(norm: nn.Module, activation: nn.Module | None = None) -> Network:
    torch.manual_seed(0)
    return Network(norm, activation).double().eval()


def kill(model: Network, which: Tensor) -> Network:
    """Makes channels zero for every input."""
    with torch.no_grad():
        model.a.weight[which] = 0
        model.a.bias[which] = 0
    return model


def halved(model: Network, recover: str | None) -> nn.Module:
    ratios = {"a": 0.5, "default": 0.0}
    return fxprune.compile(model, [random(64, 8)], ratios=ratios, method="l2", recover=recover, progress=False)


def kept(pruned: nn.Module) -> Tensor:
    plan = fxprune.report(pruned).plan
    assert plan is not None and fxprune.report(pruned).verified
    return torch.tensor(plan.keep["a.weight"][0])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("recover", [None, "covariance", "sequential"])
def test_what_is_always_zero_goes_without_a_trace(norm: str, recover: str | None) -> None:
    model = kill(network(NORMS[norm](), nn.GELU()), torch.arange(16))
    pruned = halved(model, recover)
    assert kept(pruned).tolist() == list(range(16, 32))
    x = random(64, 8, seed=1)
    torch.testing.assert_close(pruned(x), model(x), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_without_recovery_it_is_the_original_with_zeros(norm: str) -> None:
    model = network(NORMS[norm]())
    pruned = halved(model, None)
    gone = torch.ones(32, dtype=torch.bool).index_fill(0, kept(pruned), False)
    x = random(64, 8, seed=1)
    zeroed = kill(copy.deepcopy(model), gone)
    torch.testing.assert_close(pruned(x), zeroed(x), rtol=1e-6, atol=1e-7)
    assert (pruned(x) - model(x)).abs().max() > 1e-2


def test_a_plan_scales_weights_too() -> None:
    model = network(nn.RMSNorm(32))
    pruned = halved(model, None)
    plan = fxprune.report(pruned).plan
    assert plan is not None
    x = random(64, 8, seed=1)
    torch.testing.assert_close(fxprune.apply(model, plan)(x), pruned(x))
    norm = pruned.get_submodule("norm")
    assert isinstance(norm, nn.RMSNorm)
    torch.testing.assert_close(norm.weight, model.norm.weight[kept(pruned)] * 2**0.5)


def test_steps_multiply_the_factors() -> None:
    model = network(nn.RMSNorm(32, eps=0.1))
    pruned = fxprune.compile(model, [random(64, 8)], 0.4, steps=2, recover=None, progress=False)
    assert fxprune.report(pruned).verified


@pytest.mark.parametrize("recover", ["mean_shift", "covariance", "sequential"])
@pytest.mark.parametrize("norm", [nn.RMSNorm(32), HandWritten(32), nn.LayerNorm(32), nn.GroupNorm(2, 32)])
def test_weights_fit_what_the_original_gives(recover: str, norm: nn.Module) -> None:
    model = network(copy.deepcopy(norm))
    pruned = halved(model, recover)
    x, stays = random(64, 8), kept(pruned)
    with torch.no_grad():
        wanted = model.norm(model.a(x))[:, stays]
        got = _read_by(pruned.get_submodule("b"), pruned, x)
    bias = getattr(pruned.get_submodule("norm"), "bias", None)
    rest, own = wanted - got, got if bias is None else got - bias
    assert (rest * own).mean(0).abs().max() < 1e-6, "least squares leaves nothing along what it fits"
    assert bias is None or rest.mean(0).abs().max() < 1e-6


def _read_by(layer: nn.Module, model: nn.Module, x: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(x)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("recover", [None, "covariance"])
def test_a_layer_norm_counts_channels_that_are_always_zero(recover: str | None) -> None:
    model = kill(network(nn.LayerNorm(32), nn.ReLU()), torch.arange(16))
    with torch.no_grad():  # or what lies behind the norm reads their mean
        model.norm.weight[:16] = 0
        model.norm.bias[:16] = 0
    pruned = halved(model, recover)
    x = random(64, 8, seed=1)
    assert kept(pruned).tolist() == list(range(16, 32))
    torch.testing.assert_close(pruned(x), model(x), rtol=1e-6, atol=1e-7)
    assert any("norm" in note and "written out" in note for note in fxprune.report(pruned).notes)


def test_an_ordinary_layer_norm_stays_one() -> None:
    pruned = halved(network(nn.LayerNorm(32)), None)
    norm = pruned.get_submodule("norm")
    assert isinstance(norm, nn.LayerNorm)
    assert norm.normalized_shape == (16,)
    assert norm.eps == 1e-5


def test_parts_of_a_value_are_no_trouble() -> None:
    class Split(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b = x.split(16, -1)
            return torch.cat([a * b, b], -1)

    assert fxprune.report(halved(network(Split()), None)).verified

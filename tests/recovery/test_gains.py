"""Norms and means over fewer channels: what is always zero counts, and weights are fitted where something else goes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.support.dead import halved, kept, kill, network
from tests.support.tensors import random


class HandWritten(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


class OneMore(nn.Module):
    """A weight that begins at zero, with one added to it, as in Gemma."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) - 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * (1.0 + self.weight)


class Variance(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        spread, mean = torch.var_mean(x, -1, keepdim=True, correction=0)
        return (x - mean) * torch.rsqrt(spread + 1e-5) * self.weight


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


NORMS: dict[str, Callable[[], nn.Module]] = {
    "RMS norm": lambda: nn.RMSNorm(32),
    "RMS norm with a large eps": lambda: nn.RMSNorm(32, eps=0.1),
    "RMS norm without weight": lambda: nn.RMSNorm(32, elementwise_affine=False),
    "RMS norm whose weight is shared": lambda: Shared(32),
    "written by hand": lambda: HandWritten(32),
    "one more": lambda: OneMore(32),
    "mean": Gate,
}


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_eps_that_torch_chooses_is_one_of_all_channels(dtype: torch.dtype) -> None:
    """``eps=None``: that of the dtype, which counts where activations are as small as its root."""
    model = kill(network(nn.RMSNorm(32)), torch.arange(16)).to(dtype)
    with torch.no_grad():
        for parameter in model.a.parameters():
            parameter.mul_(torch.finfo(dtype).eps ** 0.5)
    x = random(64, 8).to(dtype)
    for form in ("graph", "module"):
        pruned = fxprune.compile(model, [x], ratios={"a": 0.5, "default": 0.0}, method="l2", recover=None, form=form)
        torch.testing.assert_close(pruned(x), model(x), rtol=2e-6, atol=1e-6)


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


NORMS_WITH_WEIGHTS = [nn.RMSNorm(32), HandWritten(32), OneMore(32), Variance(32), nn.LayerNorm(32), nn.GroupNorm(2, 32)]


@pytest.mark.parametrize("recover", ["mean_shift", "covariance", "sequential"])
@pytest.mark.parametrize("norm", NORMS_WITH_WEIGHTS)
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


def test_parts_of_a_value_are_no_trouble() -> None:
    class Split(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b = x.split(16, -1)
            return torch.cat([a * b, b], -1)

    assert fxprune.report(halved(network(Split()), None)).verified

"""Norms over channels some of which are always zero: without these they compute what they computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.models.fn import Fn
from tests.support.dead import Network, halved, kept, kill, network
from tests.support.marks import sampled
from tests.support.tensors import random

HALF = torch.arange(16)


class ByHand(nn.Module):
    """A layer norm as people write it: ``spread`` says how far from the mean the channels are."""

    def __init__(self, spread: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(32) + 0.5), nn.Parameter(torch.randn(32))
        self.spread = spread

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return self.weight * centred / self.spread(x, centred) + self.bias


BY_HAND: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "var": lambda x, _: (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt(),
    "unbiased var": lambda x, _: (x.var(-1, keepdim=True) + 1e-5).sqrt(),
    "std": lambda x, _: x.std(-1, keepdim=True) + 1e-5,
    "var_mean": lambda x, _: (torch.var_mean(x, -1, keepdim=True)[0] + 1e-5).sqrt(),
    "std_mean": lambda x, _: torch.std_mean(x, -1, keepdim=True)[0] + 1e-5,
    "pow": lambda _, y: (y.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt(),
    "product": lambda _, y: ((y * y).mean(-1, keepdim=True) + 1e-5).sqrt(),
    "square": lambda _, y: (y.square().mean(-1).unsqueeze(-1) + 1e-5).sqrt(),
}
NORMS: dict[str, Callable[[], nn.Module]] = {
    "layer norm": lambda: nn.LayerNorm(32),
    "layer norm without bias": lambda: nn.LayerNorm(32, bias=False),
    "group norm of one group": lambda: nn.GroupNorm(1, 32),
    **{name: lambda spread=spread: ByHand(spread) for name, spread in BY_HAND.items()},
}


def silent(model: Network, dead: Tensor) -> Network:
    """Makes channels zero, and what a norm gives for them: it is the mean that it takes off, else."""
    with torch.no_grad():
        for name in ("weight", "bias"):
            if getattr(model.norm, name, None) is not None:
                getattr(model.norm, name)[dead] = 0
    return kill(model, dead)


@pytest.mark.parametrize(
    ("norm", "recover"), sampled([(norm, how) for norm in NORMS for how in (None, "covariance", "sequential")], 4)
)
def test_what_is_always_zero_goes_without_a_trace(norm: str, recover: str | None) -> None:
    model = silent(network(NORMS[norm](), nn.ReLU()), HALF)
    pruned = halved(model, recover)
    assert kept(pruned).tolist() == list(range(16, 32))
    x = random(64, 8, seed=1)
    torch.testing.assert_close(pruned(x), model(x), rtol=1e-6, atol=1e-7)


def test_the_report_names_a_norm_that_is_written_out() -> None:
    pruned = halved(silent(network(nn.LayerNorm(32), nn.ReLU()), HALF), None)
    assert any("norm" in note and "written out" in note for note in fxprune.report(pruned).notes)


def test_channels_in_every_group_go_without_a_trace() -> None:
    dead = torch.arange(32).reshape(4, 8)[:, :4].flatten()
    model = silent(network(nn.GroupNorm(4, 32), nn.ReLU()), dead)
    pruned = halved(model, None, ratios={"a": 0.0, "a#2": 0.5})
    assert not torch.isin(kept(pruned), dead).any()
    x = random(64, 8, seed=1)
    torch.testing.assert_close(pruned(x), model(x), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("over", ["channels", "image"])
@pytest.mark.parametrize("size", [(3, 6, 6), (2, 5, 7)])
def test_norms_of_images(over: str, size: tuple[int, int, int]) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        if over == "channels":
            return self.b(self.norm(y))
        whole = y.flatten(1)  # channels times positions, known at run time alone
        return self.b(y * self.norm.weight[:, None, None] * whole.std(1)[:, None, None, None])

    torch.manual_seed(0)
    model = Fn(forward, a=nn.Conv2d(3, 32, 3, padding=1), norm=nn.GroupNorm(1, 32), b=nn.Conv2d(32, 4, 1)).double()
    with torch.no_grad():
        for tensor in (model.a.weight, model.a.bias, model.norm.weight, model.norm.bias):
            tensor[:16] = 0
    shapes = [random(3, 3, 6, 6), random(4, 3, 8, 10)]
    pruned = fxprune.compile(
        model.eval(), shapes, ratios={"a": 0.5, "default": 0.0}, method="l2", recover=None, progress=False
    )
    assert fxprune.report(pruned).verified and pruned.get_parameter("a.weight").shape[0] == 16
    batch, *positions = size
    x = random(batch, 3, *positions, seed=2)
    torch.testing.assert_close(pruned(x), model(x), rtol=1e-6, atol=1e-7)


def test_a_layer_norm_over_channels_and_positions() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x).relu().transpose(1, 2)).transpose(1, 2))

    torch.manual_seed(0)
    model = Fn(forward, a=nn.Linear(8, 32), norm=nn.LayerNorm((32, 5)), b=nn.Linear(32, 4)).double().eval()
    with torch.no_grad():
        for tensor in (model.a.weight, model.a.bias, model.norm.weight, model.norm.bias):
            tensor[:16] = 0
    pruned = halved(model, None, random(6, 5, 8))
    kept(pruned)
    x = random(6, 5, 8, seed=1)
    torch.testing.assert_close(pruned(x), model(x), rtol=1e-6, atol=1e-7)


def test_half_precision_is_counted_in_full() -> None:
    model = silent(network(nn.LayerNorm(32), nn.ReLU()), HALF).to(torch.bfloat16)
    pruned = halved(model, None, random(64, 8).bfloat16())
    x = random(64, 8, seed=1).bfloat16()
    assert pruned(x).dtype is torch.bfloat16
    torch.testing.assert_close(pruned(x), model(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("how", ["batch norm", "layer norm"])
def test_a_norm_that_multiplies_by_zero_makes_dead_channels(how: str) -> None:
    first = nn.BatchNorm1d(32) if how == "batch norm" else nn.LayerNorm(32)
    model = silent(network(nn.LayerNorm(32), nn.Sequential(first, nn.ReLU())), HALF)
    with torch.no_grad():
        first.weight[:16] = 0
        first.bias[:16] = 0
        if how == "batch norm":
            model.a.bias[:16] = 1.0
    pruned = fxprune.compile(
        model, [random(64, 8)], ratios={"a": 0.5, "default": 0.0}, method="bn_scale" if how == "batch norm" else "l2",
        recover=None, progress=False,
    )  # fmt: skip
    x = random(64, 8, seed=1)
    torch.testing.assert_close(pruned(x), model(x), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("norm", [nn.LayerNorm(32), nn.GroupNorm(4, 32)])
def test_an_ordinary_norm_stays_one(norm: nn.Module) -> None:
    left = halved(network(norm), None).get_submodule("norm")
    assert type(left) is type(norm)
    assert left.eps == 1e-5


def test_whole_groups_leave_a_plain_norm() -> None:
    model = silent(network(nn.GroupNorm(4, 32), nn.ReLU()), HALF)
    pruned = halved(model, None, ratios={"a#2": 0.0})
    assert isinstance(pruned.get_submodule("norm"), nn.GroupNorm)
    x = random(64, 8, seed=1)
    torch.testing.assert_close(pruned(x), model(x), rtol=1e-6, atol=1e-7)


OTHERS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "mean of magnitudes": lambda m, y: y / (y.abs().mean(-1, keepdim=True) + 1e-5),
    "rms norm with a gain": lambda m, y: torch.nn.functional.rms_norm(y, (32,), m.weight, 1e-5),
}


@pytest.mark.parametrize("other", OTHERS)
def test_other_statistics_of_centred_channels_are_announced(other: str) -> None:
    norm = Fn(lambda m, x: OTHERS[other](m, x - x.mean(-1, keepdim=True)), weight=nn.Parameter(torch.rand(32) + 0.5))
    model = silent(network(norm, nn.ReLU()), HALF)
    assert any("centred" in note for note in fxprune.report(halved(model, None)).notes)
    assert not any("centred" in note for note in fxprune.report(halved(network(norm, nn.ReLU()), None)).notes)

"""What training does beside evaluation is the class's own: a train() that freezes, branches, stop-gradients, Functions, autocast."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fxprune
from tests.support.zeroed import as_pruned, differing, other_buffers, other_gradients, plain, step


class Frozen(nn.Module):
    """Its batch norm stays in evaluation mode, and one layer in rest."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b, self.c = nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.bn.running_mean.normal_()  # type: ignore[union-attr]
        self.b.requires_grad_(False)

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.bn.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(F.relu(self.bn(self.a(x)))).relu())


class Branch(nn.Module):
    """A detector's raw maps in training, scores and raw maps otherwise, and an auxiliary head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.d, self.aux = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 6), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        h = self.bn(self.a(x)).relu()
        raw = self.d(h)
        return {"raw": raw, "aux": self.aux(h)} if self.training else (raw.sigmoid(), raw)


class Detached(nn.Module):
    """Siamese: one side is a target, and some of it is computed without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.f = nn.Linear(6, 8), nn.Linear(6, 8)
        self.p = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.f(x)
        a, b = self.e(x), self.e(-x)
        return F.cosine_similarity(self.p(a), b.detach(), dim=-1) + F.cosine_similarity(self.p(b), target, dim=-1)


class Sign(torch.autograd.Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0]


class Through(nn.Module):
    """A custom function, and a part that is computed again in the backward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(6, 24), nn.Linear(24, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = Sign.apply(self.a(x))
        h = checkpoint(lambda h: torch.tanh(self.b(h)), h, use_reentrant=False)
        return self.o(h)


MODELS: list[Callable[[], nn.Module]] = [Frozen, Branch, Detached, Through]


def compiled(make: Callable[[], nn.Module]) -> tuple[nn.Module, Any, Tensor]:
    """Returns a model, what is left of it in its own class, without a warning, and data."""
    torch.manual_seed(0)
    model, data = make().double().eval(), torch.randn(8, 6).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error", fxprune.FxpruneWarning)
        options: Any = {"method": "l2", "recover": None, "dynamic_shapes": {}, "progress": False}
        home = fxprune.compile(model, [data], 0.6, form="module", **options)
    return model, home, data


@pytest.mark.parametrize("make", MODELS)
def test_a_step_is_that_of_the_original_without_what_went(make: Callable[[], nn.Module]) -> None:
    model, home, data = compiled(make)
    assert type(home) is type(model) and home.report.params[1] < home.report.params[0]
    original, keep, made = plain(copy.deepcopy(model), home.plan.keep)
    if make is Branch:  # the plan is about what is captured in evaluation
        keep = {"aux.weight": {1: keep["d.weight"][1]}, **keep}
    want, got = step(as_pruned(original, keep), (data,)), step(home, (data,))
    assert differing(want.outputs, got.outputs, 1e-8) == ""
    assert list(other_gradients(want, got, keep, made, 1e-8)) == []
    assert list(other_buffers(want, got, keep, made, 1e-8)) == []


def test_what_is_frozen_stays_so() -> None:
    _, home, _ = compiled(Frozen)
    home.train()
    assert not home.bn.training and home.a.training
    assert [name for name, p in home.named_parameters() if not p.requires_grad] == ["b.weight", "b.bias"]


def test_training_gives_what_the_class_gives_then() -> None:
    _, home, data = compiled(Branch)
    assert home.aux.in_features == home.d.in_features < 16
    assert sorted(home.train()(data)) == ["aux", "raw"] and isinstance(home.eval()(data), tuple)


class Region(nn.Module):
    """A part in float32, whatever runs around it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(6, 24), nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.a(x).relu()
        with torch.autocast("cpu", enabled=False):
            h = self.b(h.float()).relu()
        return self.o(h), h.exp().sum(-1)


def test_a_region_stays_in_float32() -> None:
    torch.manual_seed(0)
    model, data = Region().eval(), torch.randn(16, 6)
    home: Any = fxprune.compile(model, [data], 0.6, method="l2", recover=None, form="module", progress=False)
    assert home.b.in_features < 24
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert [x.dtype for x in home(data)] == [x.dtype for x in model(data)] == [torch.bfloat16, torch.float32]


class Normed(nn.Module):
    """Weight norm with norms of both signs, on a layer that stays, one that loses outputs and one that loses inputs."""

    def __init__(self) -> None:
        super().__init__()
        norm = torch.nn.utils.parametrizations.weight_norm
        self.a, self.b, self.c = norm(nn.Linear(6, 12)), norm(nn.Linear(12, 6)), norm(nn.Linear(6, 6))
        self.o = nn.Linear(6, 3)
        for layer in (self.a, self.b, self.c):
            layer.parametrizations.weight.original0.data[::2] *= -1.0  # type: ignore[union-attr, index]
            layer.parametrizations.weight.original1.data *= 3.0  # type: ignore[union-attr, index]

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.c(x + self.b(self.a(x).relu())))


def test_what_a_weight_is_made_of_stays_what_it_was() -> None:
    torch.manual_seed(0)
    model, data = Normed().eval(), torch.randn(8, 6)
    ratios = {"a": 0.5, "default": 0.0}
    home: Any = fxprune.compile(model, [data], ratios=ratios, method="l2", recover=None, form="module", progress=False)
    kept = list(home.plan.keep["a.parametrizations.weight.original1"][0])
    for name, index in (("a", (kept,)), ("b", (slice(None), kept)), ("c", (slice(None),))):
        was, now = (m.get_submodule(f"{name}.parametrizations.weight") for m in (model, home))
        assert torch.equal(now.original1, was.original1[index])  # type: ignore[arg-type, index]
        norms = was.original0[index[0]]  # type: ignore[index]
        assert torch.equal(now.original0.sign(), norms.sign())  # type: ignore[operator]
        assert torch.allclose(now.original0, norms) == (name != "b")  # of fewer inputs the norm is another

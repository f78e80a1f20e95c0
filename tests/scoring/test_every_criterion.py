"""Every criterion: finite for every unit, in any precision, and a whole compile with it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import fxprune
from fxprune._base.errors import BudgetError, NothingToPruneError, ScorerError
from fxprune.capturing.inputs import PlainInputs
from fxprune.coupling.coupling import Coupling
from fxprune.scoring import score
from fxprune.scoring.chip import ChannelIndependence
from fxprune.scoring.hrank import FeatureRank
from fxprune.scoring.scorer import registered
from tests.models import small
from tests.models.fn import Fn
from tests.models.smooth import Attention
from tests.models.stepwise import Conv
from tests.support.formulas import assert_same, built
from tests.support.marks import but_slow
from tests.support.pruning import coupling_of
from tests.support.tensors import random
from tests.support.weights import randomise

METHODS = sorted(registered())
BASELINES = ["bn_scale", "chip", "fpgm", "hrank", "nisp", "taylor"]


def test_no_more_samples_than_asked_for() -> None:
    coupling, _, x, _ = built("conv")
    for scorer in (FeatureRank, ChannelIndependence):
        found = score(coupling, [(x[:2],), (x[2:],)], scorer(samples=3))
        assert_same(found, score(coupling, [(x[:3],)], scorer()))
        assert not torch.equal(found["a"], score(coupling, [(x,)], scorer(samples=5))["a"])


def test_what_is_not_finite_is_refused() -> None:
    coupling, _, x, _ = built("mlp")
    with pytest.raises(ScorerError, match=r"'hrank' expects finite activations, got NaN"):
        score(coupling, [(x * float("inf"),)], "hrank")


@functools.cache
def _with_zeros(dtype: torch.dtype) -> Coupling:
    """Returns the coupling of a network with a layer of zeros, and zeros among its scales."""
    model = Conv().to(dtype).eval()
    coupling = fxprune.couple(fxprune.capture(model, (random(5, 3, 6, 6).to(dtype),)))
    with torch.no_grad():
        model.b.weight.zero_()
        model.norm.weight[1:] = 0
    return coupling


@pytest.mark.parametrize("method", BASELINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.slow
def test_low_precision_and_zero_weights(method: str, dtype: torch.dtype) -> None:
    inputs = PlainInputs([(random(5, 3, 6, 6).to(dtype),)], [torch.arange(5) % 4])
    found = score(_with_zeros(dtype), inputs, method)
    assert all(torch.isfinite(s).all() and (s >= 0).all() for s in found.values())
    assert len(found["a"]) == 6 and (method in ("nisp", "taylor") or float(found["a"].max()) > 0)


@pytest.mark.parametrize("method", BASELINES)
@pytest.mark.parametrize("name", small.NETWORKS)
def test_every_unit_of_every_group_gets_a_finite_score(name: str, method: str) -> None:
    coupling, flat = coupling_of(name), small.example(name)

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        first = outputs[0] if isinstance(outputs, tuple) else outputs
        return (first.flatten(1).sum(1) * targets).mean()

    targets = torch.linspace(-1, 1, len(flat[0]), dtype=torch.float64)
    if method == "bn_scale" and name != "residual":
        with pytest.raises(ScorerError, match="expects batch norms"):
            score(coupling, [flat], method)
        return
    found = score(coupling, PlainInputs([flat], [targets]), method, loss=loss)
    assert {name: len(s) for name, s in found.items()} == {g.name: len(g.units) for g in coupling.groups}
    assert all(torch.isfinite(s).all() and (s >= 0).all() for s in found.values())


def _image() -> tuple[nn.Module, Tensor]:
    resnet = torchvision.models.resnet
    return resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=10), torch.randn(4, 3, 32, 32)


def _tokens() -> tuple[nn.Module, Tensor]:
    return Fn(lambda m, x: m.body(x).mean(1), body=Attention()), torch.randn(4, 5, 8)


#: What says clearly that it has nothing to go by, or too little to prune, in these networks.
REFUSED = {
    ("bn_scale", _tokens): (ScorerError, "expects batch norms"),
    ("reap", _image): (ScorerError, "expects experts"),
    ("reap", _tokens): (ScorerError, "expects experts"),
    ("vbp", _image): (NothingToPruneError, "hidden units of an MLP"),  # it prunes MLPs alone
    ("vbp", _tokens): (BudgetError, "cannot be reached"),
}

#: Takes a minute for a network of resnet18's width.
SLOW = {("joint", _image), ("obs", _image)}
QUICK = ("taylor", "variance", "spvr", "vbp")
CASES = [(method, build) for method in METHODS for build in (_image, _tokens) if (method, build) not in SLOW]


@pytest.mark.parametrize(("method", "build"), but_slow(CASES, quick=[(method, _tokens) for method in QUICK]))
def test_every_method_compiles(method: str, build: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    torch.manual_seed(0)
    model, x = build()
    randomise(model.eval(), 0, (x,))
    data = [(x, torch.tensor([0, 1, 2, 1]))]
    if (method, build) in REFUSED:
        error, message = REFUSED[method, build]
        with pytest.raises(error, match=message):
            fxprune.compile(model, data, 0.6, method=method, progress=False, dynamic_shapes={})
        return
    pruned = fxprune.compile(model, data, 0.6, method=method, recover=None, progress=False, dynamic_shapes={})
    kept = sum(p.numel() for p in pruned.parameters()) / sum(p.numel() for p in model.parameters())
    assert fxprune.report(pruned).verified is True
    assert 0.3 < kept <= 0.6

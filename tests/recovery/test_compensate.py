"""Compensation, against its formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxprune.compiler.by_hand import recover
from tests.support.marks import but_slow
from tests.support.recovering import LAYERS, METHODS, TINY, chain, constant, pair, statistics, twice


@pytest.mark.parametrize("method", ["covariance", "sequential"])
@pytest.mark.parametrize("layer", but_slow(LAYERS, quick=("linear", "3x3")))
def test_copies_are_taken_over_exactly(layer: str, method: str) -> None:
    case = pair(*LAYERS[layer], twice, [4, 5, 6, 7])
    assert case.error(None) > 0.1
    assert case.error(method, ridge=TINY) < 1e-6


def test_a_grouped_consumer_takes_over_within_each_group() -> None:
    def prepare(model: nn.Module) -> None:
        for tensor in (model.a.weight, model.a.bias):
            tensor[1::2] = tensor[::2]  # channels 2i and 2i + 1 are in one group

    build = lambda: chain(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3, groups=2))  # noqa: E731
    case = pair(build, (8, 3, 6, 6), prepare, [1, 3, 5, 7])
    assert case.error(None) > 0.1
    assert case.error("covariance", ridge=TINY) < 1e-6
    assert case.error("sequential", ridge=TINY) < 1e-6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("home", ["bias", "batch norm"])
def test_constants_go_into_the_bias_or_the_running_mean(home: str, method: str) -> None:
    if home == "bias":
        case = pair(*LAYERS["1x1"], constant, [4, 5, 6, 7])
    else:
        build = lambda: chain(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4))  # noqa: E731
        both = lambda model: (constant(model), statistics(model))  # noqa: E731
        case = pair(build, (4, 3, 5, 5), both, [4, 5, 6, 7])
    assert case.error(None) > 0.1
    assert case.error(method, ridge=TINY) < 1e-9


def test_a_shift_without_a_home_is_skipped_and_named() -> None:
    case = pair(lambda: chain(nn.Linear(5, 8), nn.Linear(8, 3, bias=False)), (32, 5), constant, [4, 5, 6, 7])
    recovery = recover(case.coupling, case.removed, case.batches, "mean_shift")
    assert recovery.skipped == ("b.weight: no bias or batch norm takes its shift",)
    assert torch.equal(recovery.tensors["b.weight"], case.model.b.weight)
    assert case.error("covariance") < case.error(None)  # what is kept carries some of the constant


def test_mean_shift_is_the_formula() -> None:
    case = pair(*LAYERS["linear"], lambda _: None, [1, 6])
    hidden = torch.cat([case.model.a(*batch).relu() for batch in case.batches])
    weight = case.model.b.weight
    want = case.model.b.bias + weight[:, [1, 6]] @ hidden.mean(0)[[1, 6]]
    recovery = recover(case.coupling, case.removed, case.batches, "mean_shift")
    assert torch.allclose(recovery.tensors["b.bias"], want, rtol=1e-12)
    assert torch.equal(recovery.tensors["b.weight"], weight)


def test_covariance_is_the_formula() -> None:
    case = pair(*LAYERS["linear"], lambda _: None, [1, 6])
    hidden = torch.cat([case.model.a(*batch).relu() for batch in case.batches]).detach()
    weight, bias = case.model.b.weight.detach(), case.model.b.bias.detach()
    kept, gone = [0, 2, 3, 4, 5, 7], [1, 6]
    mean = hidden.mean(0)
    c = (hidden - mean).T @ (hidden - mean)
    ridge = 0.03
    damped = c[kept][:, kept] + ridge * c[kept][:, kept].diagonal().mean() * torch.eye(6, dtype=torch.float64)
    b = c[gone][:, kept] @ torch.linalg.inv(damped)
    recovery = recover(case.coupling, case.removed, case.batches, "covariance", ridge=ridge)
    new = recovery.tensors["b.weight"]
    assert torch.allclose(new[:, kept], weight[:, kept] + weight[:, gone] @ b, rtol=1e-9)
    shift = weight[:, gone] @ (mean[gone] - b @ mean[kept])
    assert torch.allclose(recovery.tensors["b.bias"], bias + shift, rtol=1e-9)

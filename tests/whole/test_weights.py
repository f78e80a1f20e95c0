"""The weights of the exactness tests are fit to prove something: outputs vary, and every channel counts."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from benchmarks.common import zoo
from tests.support.marks import but_slow
from tests.support.weights import fingerprint, randomise, relative_error, spread

FAST = [entry.name for entry in zoo.select(fast=True)]


def _prepared(name: str, seed: int = 0) -> tuple[nn.Module, zoo.Batch, zoo.Batch]:
    entry = zoo.ZOO[name]
    size = 64 if entry.kind == "image" else None
    batch = entry.batch(4, seed, size)
    model = entry.build()
    randomise(model, seed, *(((), batch) if isinstance(batch, dict) else ((batch,), None)))
    return model, batch, entry.batch(3, seed + 1, size)


@pytest.mark.parametrize("name", but_slow(FAST, quick=FAST[:1]))
def test_outputs_vary_over_a_fresh_batch_and_agree_in_both_precisions(name: str) -> None:
    model, _, fresh = _prepared(name)
    with torch.no_grad():
        single = zoo.tensors(zoo.call(model, fresh))
        double = zoo.tensors(zoo.call(model.double(), zoo.cast(fresh, torch.float64)))
    for a, b in zip(single, double, strict=True):
        assert torch.isfinite(b).all()
        assert spread(b) > 1e-2
        assert relative_error(a, b) < 5e-5


@pytest.mark.parametrize("name", but_slow(["resnet18", "mobilenet_v2", "bert"], quick=("resnet18",)))
@pytest.mark.slow
def test_a_single_channel_that_is_zeroed_shows(name: str) -> None:
    model, _, fresh = _prepared(name)
    model, fresh = model.double(), zoo.cast(fresh, torch.float64)
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and m.weight.shape[1] > 3]
    with torch.no_grad():
        expected = zoo.tensors(zoo.call(model, fresh))
        for layer in layers[:: max(1, len(layers) // 6)]:
            kept = layer.weight[:, 1].clone()
            layer.weight[:, 1] = 0
            got = zoo.tensors(zoo.call(model, fresh))
            layer.weight[:, 1] = kept
            assert max(relative_error(a, b) for a, b in zip(got, expected, strict=True)) > 1e-6


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    first, second, other = (_prepared("shufflenet_v2_x1_0", seed)[0] for seed in (0, 0, 1))
    bytes_of = [{name: value for name, (_, value) in fingerprint(m).items()} for m in (first, second, other)]
    assert bytes_of[0] == bytes_of[1]
    assert bytes_of[0]["conv1.0.weight"] != bytes_of[2]["conv1.0.weight"]


def test_no_parameter_or_statistic_is_left_at_its_default() -> None:
    model, *_ = _prepared("mobilenet_v3_large")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.numel() > 1:
            assert tensor.std() > 1e-3 * tensor.abs().mean(), name


def test_without_inputs_the_weights_are_random_and_flags_stay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout()).train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    randomise(model, 3)
    assert [m.training for m in model] == [True, False, True]
    assert all(not torch.equal(before[k], v) for k, v in model.state_dict().items() if v.is_floating_point())

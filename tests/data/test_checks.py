"""What a model and its batches must be before any work is done."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

from fxprune._base.errors import CalibrationError
from fxprune.data.batches import Batches
from fxprune.data.checks import check_plain, check_weights, device_of, non_finite, probe
from tests.support.weights import fingerprint

X, Y = torch.randn(8, 3), torch.arange(8)


def first(calib: Any, **options: Any) -> Any:
    return Batches(calib, device="cpu", **options).first()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64])
def test_non_finite(dtype: torch.dtype) -> None:
    good = torch.ones(5).to(dtype)
    bad = good.clone()
    bad[3] = float("nan")
    assert (non_finite(good), non_finite(bad)) == ("", "NaN")
    if not dtype.is_complex:
        bad[3] = float("inf")
        assert non_finite(bad) == "Inf"
        assert non_finite(-bad) == "-Inf" and non_finite(-bad, allow_minus_inf=True) == ""


def test_conjugates_are_looked_at_as_they_are() -> None:
    values = torch.tensor([1 + 1j, 2 - 1j])
    assert non_finite(values.conj()) == "" and non_finite((values * torch.nan).conj()) == "NaN"


def test_non_finite_of_tensors_without_floats() -> None:
    assert [non_finite(t) for t in (torch.arange(3), torch.ones(0), torch.ones(2, device="meta"))] == [""] * 3
    assert non_finite(torch.tensor([1.0, float("nan")]).to(torch.float8_e5m2)) == "NaN"


class Stacked(nn.Module):
    """Takes a list of images, as a detector does."""

    def forward(self, images: Any) -> Tensor:
        if not isinstance(images, list | dict):
            raise TypeError("expected a list")
        return torch.stack(list(images)).sum()


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        self.calls += 1
        return self.norm(x) * scale


def test_weights_that_are_finite_pass_and_masks_may_be_minus_inf() -> None:
    check_weights(Masked())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("norm.weight", "nan", "parameter norm.weight holds NaN"),
        ("norm.bias", "-inf", "parameter norm.bias holds -Inf"),
        ("norm.running_mean", "-inf", "buffer norm.running_mean holds -Inf"),
        ("norm.running_var", "inf", "buffer norm.running_var holds Inf"),
        ("mask", "nan", "buffer mask holds NaN"),
    ],
)
def test_weights_that_are_not(name: str, value: str, message: str) -> None:
    model = Masked()
    with torch.no_grad():
        model.state_dict()[name].flatten()[1] = float(value)
    with pytest.raises(CalibrationError, match=message):
        check_weights(model)


def test_weights_that_are_not_there_yet_are_named() -> None:
    with pytest.raises(CalibrationError, match=r"0.weight is not initialised yet: call the model once with a batch"):
        check_plain(nn.Sequential(nn.LazyLinear(4)))


def _quantised(kind: str) -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    if kind == "dynamic":
        return torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
    if kind == "tensor":
        net[0].weight = nn.Parameter(torch.quantize_per_tensor(net[0].weight, 0.1, 0, torch.qint8), requires_grad=False)
    else:
        net[0].weight = nn.Parameter(TwoTensor(net[0].weight.detach(), net[0].weight.detach()))
    return net


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("kind", "name"), [("dynamic", "0._packed_params"), ("tensor", "0.weight"), ("subclass", "0.weight")]
)
def test_a_quantised_model_is_told_to_be_pruned_first(kind: str, name: str) -> None:
    with pytest.raises(CalibrationError, match=rf"{name} .*prune first, then quantise"):
        check_plain(_quantised(kind))


def test_the_device_of_a_model() -> None:
    assert device_of(nn.ReLU()) == torch.device("cpu")
    assert device_of(nn.Linear(2, 2, device="meta")) == torch.device("meta")
    with pytest.raises(CalibrationError, match=r"got 0.weight on cpu, 1.weight on meta"):
        device_of(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta")))


def test_probe_leaves_the_model_as_it_is() -> None:
    model = Masked().train()
    before, flags = fingerprint(model), [module.training for module in model.modules()]
    probe(model, first([X]))
    assert fingerprint(model) == before and [module.training for module in model.modules()] == flags
    with pytest.raises(CalibrationError):
        probe(model, first([torch.randn(4, 5)]))
    assert fingerprint(model) == before and [module.training for module in model.modules()] == flags


def test_probe_takes_two_samples_unless_the_model_needs_all() -> None:
    sizes = []

    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return x.reshape(8, -1)

    probe(Fixed(), first([torch.randn(8, 5)]))
    assert sizes == [2, 8]


@pytest.mark.parametrize(
    ("model", "batch", "message"),
    [
        (nn.Linear(3, 2), X.double(), "expected float32, as the model's parameters are"),
        (nn.Linear(3, 2).double(), X, "expected float64"),
        (nn.Conv2d(3, 2, 1), torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "expected float32"),
        (nn.Embedding(9, 2), X, "expected int64 or int32 indices for an embedding"),
        (nn.Linear(5, 2), X, "expected a batch that the model's forward accepts"),
        (nn.ReLU(), {"x": X}, "got kwargs['x'] float32 [8, 3]"),
        (Stacked(), [X[0], X[0]], "pass forward_args=lambda b: ((b,), {})"),
        (Stacked(), [torch.zeros(3, 4, 4)], "a list of images, pass forward_args=lambda b: ((b,), {})"),
        (nn.Linear(5, 2), torch.zeros(3, 4, 4), "if it is an image without a batch dimension, give it one"),
        (Stacked(), ([X[0], X[0], X[0]], {"boxes": Y}), "pass forward_args=lambda b: ((b,), {})"),
        (Stacked(), {"pixels": X}, "pass forward_args=lambda b: ((b,), {})"),
        (Masked(), ((X, X), Y), "too many positional arguments; got args[0] float32 [8, 3], args[1]"),
    ],
)
def test_a_batch_that_the_model_does_not_take(model: nn.Module, batch: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=re.escape(message)):
        probe(model, first([batch]))

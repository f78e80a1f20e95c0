"""What compile makes of its own certificate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.rewriting.emission import emitted
from tests.support.compiling import around, compile_small, mlp
from tests.support.weights import fingerprint


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_can_be_proof(dtype: torch.dtype) -> None:
    report = fxprune.report(compile_small(mlp(), verify_dtype=dtype))
    assert report.verified is True


def test_outputs_that_pruning_makes_infinite_are_refused() -> None:
    with pytest.raises(fxprune.VerificationError, match="not finite, unlike the original's"):
        compile_small(around(lambda h: h / (h - h.mean(-1, keepdim=True))), budget=0.05, recover=None)


@pytest.mark.parametrize(
    "noise", [lambda h: h + 0.1 * torch.randn_like(h), lambda h: nn.functional.dropout(h, 0.5, training=True)]
)
def test_random_numbers_in_evaluation_are_no_fault(noise: Any) -> None:
    assert fxprune.report(compile_small(around(noise))).verified is None


def test_a_constant_network_is_unproven_and_no_error() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    nn.init.zeros_(model[2].weight)
    report = fxprune.report(fxprune.compile(model, [torch.randn(6, 4)], 0.6, recover=None, progress=False))
    assert report.verified is None and "constant over the batch" in str(report)


def test_compile_refuses_what_its_own_emission_gets_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> nn.Module:
        module = emitted(*args)
        with torch.no_grad():
            next(module.parameters())[0] *= 1.01
        return module

    monkeypatch.setattr("fxprune.compiler.stages.emitted", broken)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)).eval()
    before, data = fingerprint(model), [torch.randn(6, 5)]
    with pytest.raises(fxprune.VerificationError, match=r"failed verification: error .* the outputs differ"):
        fxprune.compile(model, data, 0.6, recover=None, progress=False)
    assert fingerprint(model) == before
    unproven = fxprune.compile(model, data, 0.6, recover=None, verify=False, progress=False)
    assert fxprune.report(unproven).verified is None

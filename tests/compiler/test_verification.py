"""What compile makes of its own certificate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.rewriting.emission import emitted
from fxprune.twin.certificate import certify
from tests.models.fn import Fn
from tests.support.compiling import around, compile_small, mlp
from tests.support.weights import fingerprint


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_can_be_proof(dtype: torch.dtype) -> None:
    report = fxprune.report(compile_small(mlp(), verify_dtype=dtype))
    assert report.verified is True


def test_outputs_that_pruning_makes_infinite_are_refused() -> None:
    with pytest.raises(fxprune.VerificationError, match="not finite, unlike the original's"):
        compile_small(around(lambda h: h / (1 - h.softmax(-1))), budget=0.05, recover=None)


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
    with pytest.raises(fxprune.VerificationError, match=r"failed verification: error .* output 0 differs"):
        fxprune.compile(model, data, 0.6, recover=None, progress=False)
    assert fingerprint(model) == before
    unproven = fxprune.compile(model, data, 0.6, recover=None, verify=False, progress=False)
    assert fxprune.report(unproven).verified is None


def test_what_was_compared_is_listed_at_two_batch_sizes() -> None:
    torch.manual_seed(0)
    model = Fn(lambda m, x: (m.b(m.a(x).relu()), x[:, :0]), a=nn.Linear(4, 8), b=nn.Linear(8, 2)).eval()
    certificate = fxprune.compile(model, [torch.randn(6, 4)], 0.6, progress=False).certificate
    assert certificate.verified is True
    assert certificate.compared == (
        "output 0 [6, 2]",
        "output 1 [6, 0]: is empty",
        "output 0 [3, 2], at args[0].shape[0] = 3",
        "output 1 [3, 0]: is empty, at args[0].shape[0] = 3",
    )


def test_a_model_that_insists_on_even_batches_is_compared_at_two() -> None:
    torch.manual_seed(0)
    model = Fn(lambda m, x: (h := m.b(m.a(x).relu()))[::2] + h[1::2], a=nn.Linear(4, 8), b=nn.Linear(8, 2)).eval()
    pruned = fxprune.compile(model, [torch.randn(6, 4), torch.randn(4, 4)], 0.6, progress=False)
    assert pruned.certificate.verified is True and pruned.certificate.compared[0] == "output 0 [3, 2]"
    assert pruned.certificate.compared[1:] == ("output 0 [2, 2], at args[0].shape[0] = 4",)


def test_another_size_is_compared_where_it_is_free() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 2, 1)).eval()
    pruned = fxprune.compile(model, [torch.randn(6, 3, 9)], 0.6, recover=None, progress=False)
    assert pruned.certificate.verified is True
    assert pruned.certificate.compared == (
        "output 0 [6, 2, 7]",
        "output 0 [3, 2, 6], at input.shape[0] = 3, input.shape[2] = 8",
    )


def test_where_float32_leaves_doubt_the_other_sizes_are_compared_in_float64_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, torch.dtype | None]] = []

    def doubtful(selection: Any, pruned: nn.Module, call: Any, *, dtype: torch.dtype | None) -> Any:
        asked.append((len(call[0][0]), dtype))
        found = certify(selection, pruned, call, dtype=dtype)
        return found if dtype is torch.float64 else replace(found, verified=None)

    monkeypatch.setattr("fxprune.compiler.stages.certify", doubtful)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)).eval()
    assert fxprune.compile(model, [torch.randn(16, 5)], 0.6, progress=False).certificate.verified is True
    assert asked == [(16, None), (16, torch.float64), (3, torch.float64)]


def test_what_is_in_float64_is_compared_as_it_is_at_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.dtype | None] = []

    def told(selection: Any, pruned: nn.Module, call: Any, *, dtype: torch.dtype | None) -> Any:
        asked.append(dtype)
        return certify(selection, pruned, call, dtype=dtype)

    monkeypatch.setattr("fxprune.compiler.stages.certify", told)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)).double().eval()
    data = [torch.randn(16, 5, dtype=torch.float64)]
    assert fxprune.compile(model, data, 0.6, progress=False).certificate.verified is True
    assert asked == [None, None]


def test_a_fault_at_another_batch_size_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> nn.Module:
        module = emitted(*args)
        module.register_forward_hook(lambda _, args, out: out if len(args[0]) == 6 else out * 1.01)
        return module

    monkeypatch.setattr("fxprune.compiler.stages.emitted", broken)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)).eval()
    with pytest.raises(fxprune.VerificationError, match="output 0 differs"):
        fxprune.compile(model, [torch.randn(6, 5)], 0.6, progress=False)


def test_a_result_that_fails_at_another_batch_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> nn.Module:
        module = emitted(*args)
        module.register_forward_hook(lambda _, args, out: out.view(8, -1))
        return module

    monkeypatch.setattr("fxprune.compiler.stages.emitted", broken)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)).eval()
    with pytest.raises(fxprune.VerificationError, match="fails where the original does not, at another batch size"):
        fxprune.compile(model, [torch.randn(8, 5)], 0.6, progress=False)


def test_a_size_that_the_model_does_not_take_is_not_compared() -> None:
    places = torch.tensor([0, 2, 5])  # of the six rows of the example
    model = Fn(lambda m, x: m.b(m.a(x)[:, places].relu()), a=nn.Linear(4, 8), b=nn.Linear(8, 2)).eval()
    pruned = fxprune.compile(model, [torch.randn(3, 6, 4)], 0.6, recover=None, progress=False)
    assert fxprune.report(pruned).verified

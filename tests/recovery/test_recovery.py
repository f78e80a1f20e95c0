"""What the kept weights take over from the removed channels."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.capturing.captured import capture
from fxprune.compiler.by_hand import recover
from fxprune.coupling.interpreter import couple
from tests.models.fn import Fn
from tests.support.pruning import removal
from tests.support.recovering import LAYERS, METHODS, Pair, chain, pair, twice


@pytest.mark.slow
def test_methods_do_better_in_the_order_of_what_they_know() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 1)
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Conv2d(6, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 6, 3, padding=1))
                for _ in range(4)
            )

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for block in self.blocks:
                x = x + block(x)
            return x

    torch.manual_seed(0)
    model = Residual().double().eval()
    batches = [(torch.randn(8, 3, 8, 8, dtype=torch.float64),) for _ in range(4)]
    coupling = couple(capture(model, batches[0]))
    case = Pair(model, coupling, removal(coupling, 0, 0.4), batches)
    errors = [case.error(method, ridge=1e-6) for method in (None, *METHODS)]
    assert errors == sorted(errors, reverse=True) and errors[3] < 0.9 * errors[2], errors


@pytest.mark.parametrize("method", ["covariance", "sequential"])
def test_less_memory_gives_the_same_or_blocks_of_it(method: str) -> None:
    case = pair(*LAYERS["linear"], lambda _: None, [1, 6], count=4)
    rich, poor = (
        recover(case.coupling, case.removed, case.batches, method, memory_limit=limit).tensors
        for limit in (1 << 30, 4096)
    )
    assert all(torch.allclose(rich[name], poor[name], rtol=1e-9) for name in rich)
    starved = case.error("covariance", memory_limit=600)  # two blocks of columns, each for itself
    assert case.error("covariance") < starved < case.error("mean_shift")


@pytest.mark.parametrize(
    ("model", "shape", "note"),
    [
        (
            lambda: chain(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 3, 2)),
            (4, 3, 4, 4),
            "no compensation for aten.conv_t",
        ),
        (
            lambda: Fn(lambda m, x: m.b(m.a(x)) + m.b(m.a(x).relu()), a=nn.Linear(5, 8), b=nn.Linear(8, 3)),
            (4, 5),
            "used more",
        ),
        (lambda: chain(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 2, 1)), (4, 3, 4, 4), None),
    ],
)
def test_what_cannot_take_over_stays_and_says_so(model: Any, shape: tuple[int, ...], note: str | None) -> None:
    case = pair(model, shape, lambda _: None, [])
    removed = removal(case.coupling, 0, 0.5)
    assert removed.any()
    recovery = recover(case.coupling, removed, case.batches, "covariance")
    assert "b.weight" not in recovery.tensors
    assert any(note in text for text in recovery.skipped) if note else not recovery.skipped


def test_nothing_removed_changes_nothing_and_the_model_is_never_touched() -> None:
    case = pair(*LAYERS["3x3"], twice, [4, 5])
    before = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    for method in METHODS:
        recover(case.coupling, case.removed, case.batches, method)
        assert not recover(case.coupling, case.removed & False, case.batches, method).tensors
    assert all(torch.equal(tensor, before[name]) for name, tensor in case.model.state_dict().items())


def test_unusable_arguments() -> None:
    case = pair(*LAYERS["linear"], twice, [4])
    with pytest.raises(ValueError, match="one of mean_shift, covariance, sequential, reconstruct"):
        recover(case.coupling, case.removed, case.batches, "magic")
    for ridge in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="ridge must be a positive share"):
            recover(case.coupling, case.removed, case.batches, "covariance", ridge=ridge)


@pytest.mark.parametrize(("method", "recover"), [("variance", "sequential"), ("spvr", "covariance")])
def test_windows_that_follow_the_input_s_size_are_left_alone(method: str, recover: str) -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        h = m.a(x).relu()
        pads = [size // 4 for size in h.shape[2:]]
        return m.c(m.n(nn.functional.conv2d(h, m.b.weight, m.b.bias, padding=pads)).relu())

    torch.manual_seed(0)
    model = Fn(
        forward, a=nn.Conv2d(3, 16, 3), b=nn.Conv2d(16, 12, 3), n=nn.BatchNorm2d(12), c=nn.Conv2d(12, 4, 1)
    ).eval()
    batches = [torch.randn(2, 3, 10, 10) for _ in range(2)]
    with pytest.warns(fxprune.RecoverySkippedWarning, match=r"b.weight: windows that follow the input's size"):
        pruned = fxprune.compile(model, batches, 0.6, method=method, recover=recover, progress=False)
    assert fxprune.report(pruned).verified
    assert pruned(torch.randn(1, 3, 14, 18)).shape == model(torch.randn(1, 3, 14, 18)).shape


def without_biases() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4, bias=False)).eval()


def test_a_shift_that_nothing_takes_is_told() -> None:
    data = [torch.randn(32, 6) for _ in range(3)]
    with pytest.warns(fxprune.RecoverySkippedWarning, match="'mean_shift' changes nothing"):
        fxprune.compile(without_biases(), data, ratios=0.5, method="l2", recover="mean_shift", progress=False)


@pytest.mark.parametrize("form", ["graph", "module"])
def test_allow_bias_gives_a_shift_a_home(form: Any) -> None:
    model, data = without_biases(), [torch.randn(32, 6) for _ in range(3)]
    options: dict[str, Any] = {"method": "l2", "recover": "mean_shift", "form": form, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error", fxprune.RecoverySkippedWarning)
        found = fxprune.compile(model, data, 0.5, allow_bias=True, **options)
    report, x = fxprune.report(found), torch.cat(data[:-1])  # the last batch is held out
    assert report.verified and any("biases were added to 2" in note for note in report.notes)
    assert report.params == (sum(p.numel() for p in model.parameters()), sum(p.numel() for p in found.parameters()))
    assert report.params[1] <= report.params[0] / 2
    assert torch.allclose(found(x).mean(0), model(x).mean(0), atol=1e-5)
    assert model[2].bias is None

"""The mode that the caller is in changes nothing: no_grad, inference mode, autocast."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.support.compiling import compile_small, mlp

MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "meta": lambda: torch.device("meta"),
}


class Stopping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = mlp(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.body(x)
        return self.head(y)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", ["l2", "taylor"])
def test_the_callers_mode_changes_nothing(mode: str, method: str) -> None:
    torch.manual_seed(0)
    model = Stopping()
    expected = compile_small(model, [(torch.ones(8, 8).tril(), torch.zeros(8, dtype=torch.long))], method=method)
    with MODES[mode]():
        data = [(torch.ones(8, 8, device="cpu").tril(), torch.zeros(8, dtype=torch.long, device="cpu"))]
        pruned = compile_small(model, data, method=method)
    assert fxprune.report(pruned).plan.keep == fxprune.report(expected).plan.keep
    assert fxprune.report(pruned).verified == fxprune.report(expected).verified
    x = torch.randn(8, 8)
    assert torch.equal(pruned(x), expected(x))
    pruned(x).sum().backward()
    assert pruned.get_parameter("head.weight").grad is not None
    assert pruned.get_parameter("body.0.weight").grad is None


@pytest.mark.parametrize("script", [torch.jit.script, lambda model: torch.jit.trace(model, torch.randn(2, 8))])
def test_a_model_of_torchscript_is_refused_in_words(script: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(fxprune.CaptureError, match=r"got one of TorchScript.*pass the module that it was made of"):
        compile_small(script(mlp()))

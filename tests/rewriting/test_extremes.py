"""The least number of a dtype, which models mask with, follows the dtype that the result runs in."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxprune
from fxprune.twin.certificate import lifted
from tests.support.emitting import emit_of

Form = Callable[[Tensor, Tensor, float], Tensor]


def _indexed(h: Tensor, m: Tensor, low: float) -> Tensor:
    h = h.clone()
    h[m] = low
    return h


#: how a model masks [batch, tokens, channels], some rows whole -> what it does with values, mask and the least number
FORMS: dict[str, Form] = {
    "masked_fill": lambda h, m, low: h.masked_fill(m, low),
    "masked_fill_": lambda h, m, low: torch.zeros_like(h).masked_fill_(m, low) + h,
    "index_put": _indexed,
    "where": lambda h, m, low: torch.where(m, low, h),
    "where a tensor": lambda h, m, low: torch.where(m, torch.tensor(low, dtype=h.dtype), h),
    "where full": lambda h, m, low: torch.where(m, torch.full([], low, dtype=h.dtype, device=h.device), h),
    "full_like": lambda h, m, low: torch.where(m, torch.full_like(h, low), h),
    "new_full": lambda h, m, low: torch.where(m, h.new_full((1,), low), h),
    "times": lambda h, m, low: (h * 0 + 1) * m * low,
    "clamp": lambda h, m, low: (h / (~m)).clamp(min=low, max=-low),
    "nan_to_num": lambda h, m, low: (h / (~m)).nan_to_num(neginf=low, posinf=low),
    "pad": lambda h, m, low: F.pad(h, (1, 1), value=low),
    "maximum": lambda h, m, low: torch.maximum(h.masked_fill(m, -torch.inf), torch.tensor(low, dtype=h.dtype)),
    "max": lambda h, m, low: h.masked_fill(m, low).amax(-1, keepdim=True).clamp(min=low) + h,
}

#: masks that are made of literals, before they meet what depends on parameters
MADE: dict[str, Form] = {
    "full": lambda h, m, low: torch.full(h.shape[-2:], low, dtype=h.dtype).triu(1) + h,
    "one minus": lambda h, m, low: (1.0 - (~m).to(h.dtype)) * low + h * 0.01,
    "two tensors": lambda h, m, low: (
        h + torch.where(m, torch.tensor(low, dtype=h.dtype), torch.tensor(0.0, dtype=h.dtype))
    ),
    "zeros": lambda h, m, low: h + torch.zeros(m.shape, dtype=h.dtype).masked_fill(m, low),
}


class Masking(nn.Module):
    def __init__(self, form: Form) -> None:
        super().__init__()
        self.a, self.b, self.form = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)), form
        with torch.no_grad():  # half of the units do nothing, so that the result is the original
            for part in (self.b[0].weight[:8], self.b[0].bias[:8], self.b[2].weight[:, :8]):
                part.zero_()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.a(x)
        h = self.form(h, mask, torch.finfo(h.dtype).min).softmax(-1)
        return self.b(h[..., :6])


def of(form: Form, dtype: torch.dtype = torch.float32, pruned: bool = False) -> tuple[nn.Module, Any, Tensor, Tensor]:
    torch.manual_seed(0)
    model, x = Masking(form).eval().to(dtype), torch.randn(3, 6, 6, dtype=dtype)
    mask = torch.rand(3, 6, 6) < 0.4
    mask[:, 2] = True
    if not pruned:
        return model, emit_of(model, x, mask), x, mask
    found = fxprune.compile(
        model,
        [[x, mask]],
        0.8,
        method="l2",
        recover=None,
        progress=False,
        forward_args=lambda batch: (tuple(batch), {}),
    )
    return model, found, x, mask


def agree(expected: Tensor, got: Tensor, tolerance: float = 2e-2) -> bool:
    assert expected.isfinite().all(), "the form does not show it"
    return expected.dtype == got.dtype and bool(torch.allclose(expected, got, atol=tolerance))


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_under_autocast(form: str) -> None:
    model, pruned, x, mask = of(FORMS[form])
    assert agree(model(x, mask), pruned(x, mask), 1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert agree(model(x, mask), pruned(x, mask))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("form", [*FORMS, *MADE])
def test_in_another_precision(form: str, dtype: torch.dtype) -> None:
    model, pruned, x, mask = of((FORMS | MADE)[form])
    model, pruned = model.to(dtype), pruned.to(dtype)
    assert agree(model(x.to(dtype), mask), pruned(x.to(dtype), mask))


@torch.no_grad()
@pytest.mark.parametrize("form", ["masked_fill", "where full", "one minus"])
def test_of_double_precision(form: str) -> None:
    model, pruned, x, mask = of((FORMS | MADE)[form], torch.float64, pruned=True)
    assert pruned.report.verified
    assert agree(model.float()(x.float(), mask), pruned.float()(x.float(), mask), 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("form", ["where full", "full"])
def test_survives_copies_files_and_exports(form: str, tmp_path: Path) -> None:
    model, pruned, x, mask = of((FORMS | MADE)[form], pruned=True)
    fxprune.save(pruned, tmp_path / "a")
    torch.compiler.reset()
    exported = torch.export.export(copy.deepcopy(pruned).half(), (x.half(), mask)).module()
    half = [copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned)), fxprune.load(tmp_path / "a")]
    compiled = torch.compile(copy.deepcopy(pruned).half(), fullgraph=True, backend="eager")
    expected = copy.deepcopy(model).half()(x.half(), mask)
    for again in (*(each.half() for each in half), compiled, exported):
        assert agree(expected, again(x.half(), mask))
    for traced in (torch.jit.trace(pruned, (x, mask)), fx.symbolic_trace(pruned)):
        assert agree(model(x, mask), traced(x, mask), 1e-5)


def test_numbers_that_are_no_extremes_stay() -> None:
    _, pruned, *_ = of(lambda h, m, low: h.masked_fill(m, -1e9) + h.clamp(min=-65504.0))
    assert "extreme" not in pruned.code


@torch.no_grad()
@pytest.mark.parametrize("form", ["masked_fill", "where full", "one minus"])
def test_the_certificate_compares_the_captured_number_in_more_precision(form: str) -> None:
    model, pruned, x, mask = of((FORMS | MADE)[form])
    raised = lifted(pruned, torch.float64)
    assert "extreme" in pruned.code and "extreme" not in raised.code
    assert agree(model(x, mask).double(), raised(x.double(), mask), 1e-5)


@torch.no_grad()
def test_follows_when_traced_symbolically() -> None:
    model, pruned, x, mask = of(FORMS["masked_fill"])
    traced = fx.symbolic_trace(pruned).half()
    assert agree(model.half()(x.half(), mask), traced(x.half(), mask))

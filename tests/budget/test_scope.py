"""A budget of what patterns cover: counted there alone, and the report says what is left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune._base.errors import BudgetError

X = torch.randn(8, 10)
OPTIONS: dict[str, Any] = {"method": "l2", "recover": None, "progress": False}


def model() -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 40), nn.ReLU())
    return nn.Sequential(nn.Linear(10, 40), body, nn.Linear(40, 30))


def params(module: nn.Module, start: str) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if name.startswith(start))


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("of", ["1", "1.*", ("1.0", "1.2")])
def test_a_share_of_some_layers(of: Any, steps: int) -> None:
    dense = model()
    pruned = fxprune.compile(dense, [X], fxprune.Budget(params=0.5, of=of), steps=steps, **OPTIONS)
    share = params(pruned, "1") / params(dense, "1")
    assert 0.45 < share <= 0.5
    assert any(f"{100 * share:.1f} %) and" in note for note in fxprune.report(pruned).notes) == (steps == 1)
    assert fxprune.report(pruned).params[1] == params(pruned, "")


def test_macs_and_absolute_numbers() -> None:
    pruned = fxprune.compile(model(), [X], fxprune.Budget(macs=1000, params=3000, of=["1.0", "2"]), **OPTIONS)
    first, last = pruned.get_parameter("1.0.weight"), pruned.get_parameter("2.weight")
    assert first.numel() + last.numel() <= 1000


def test_what_a_pattern_does_not_cover_is_free() -> None:
    whole = fxprune.compile(model(), [X], 0.5, **OPTIONS)
    head = fxprune.compile(model(), [X], fxprune.Budget(params=1.0, of="2"), **OPTIONS)
    assert params(head, "") == params(model(), "") and params(whole, "") < params(head, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"params": 0.5, "of": "layers*"}, r"of='layers\*' matches no layer, such as 0, 0.bias"),
        ({"params": 0.5, "of": 3}, "of: expected a pattern of layers, or several in a tuple, got 3"),
        ({"params": 0.5, "of": (1,)}, "of: expected a pattern"),
        ({"latency": 0.5, "of": "1"}, "neither is bounded"),
        ({"params": 3, "of": "1"}, r"a budget of 3 params \(0.0006\) cannot be reached"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        fxprune.compile(model(), [X], fxprune.Budget(**arguments), **OPTIONS)

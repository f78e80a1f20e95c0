"""A budget of what patterns cover: counted there alone, and the report says what is left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune._base.errors import BudgetError

X = torch.randn(8, 10)
OPTIONS: dict[str, Any] = {"method": "l2", "recover": None, "round_to": 1, "progress": False}


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
    assert any(f"{100 * share:.1f} %) and" in note for note in fxprune.report(pruned).notes)
    assert fxprune.report(pruned).params[1] == params(pruned, "")


def test_macs_and_absolute_numbers() -> None:
    pruned = fxprune.compile(model(), [X], fxprune.Budget(macs=1000, params=3000, of=["1.0", "2"]), **OPTIONS)
    first, last = pruned.get_parameter("1.0.weight"), pruned.get_parameter("2.weight")
    assert first.numel() + last.numel() <= 1000


def test_what_a_pattern_does_not_cover_is_free() -> None:
    whole = fxprune.compile(model(), [X], 0.5, **OPTIONS)
    head = fxprune.compile(model(), [X], fxprune.Budget(params=1.0, of="2"), **OPTIONS)
    assert params(head, "") == params(model(), "") and params(whole, "") < params(head, "")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.p = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (4, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))
        found: Tensor = self.p(((q @ k.mT) / 2).softmax(-1).matmul(v).transpose(1, 2).flatten(2))
        return found


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.e, self.attn, self.h = nn.Linear(8, 16), Attention(), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.e(x)
        found: Tensor = self.h(h + self.attn(h))
        return found


def macs_of_attention(model: nn.Module) -> int:
    """Of 20 tokens."""
    weight = {name: model.get_parameter(f"attn.{name}.weight") for name in "qkvp"}
    return 20 * sum(w.numel() for w in weight.values()) + 400 * (len(weight["q"]) + len(weight["v"]))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("of", ["attn", "attn.*"])
def test_products_of_values_count_with_the_layers_that_they_come_from(of: str, steps: int) -> None:
    x = torch.randn(4, 20, 8)
    pruned = fxprune.compile(Attending().eval(), [x], fxprune.Budget(macs=0.5, of=of), steps=steps, **OPTIONS)
    assert 0.3 < macs_of_attention(pruned) / macs_of_attention(Attending()) <= 0.5


@pytest.mark.parametrize("of", ["1", "1.0"])
def test_what_is_bridged_away_is_within_the_budget(of: str) -> None:
    options = {**OPTIONS, "recover": "reinit", "min_keep": 0}
    pruned = fxprune.compile(model(), [X], fxprune.Budget(params=2, of=of), **options)
    before = params(model(), of)
    assert any(f" of {before:,} parameters" in note for note in fxprune.report(pruned).notes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"macs": 0.5, "of": "0.bias"}, "has no multiplications, which the budget bounds"),
        ({"params": 0.5, "of": "layers*"}, r"of='layers\*' matches no layer; there are 0, 0.bias"),
        ({"params": 0.5, "of": 3}, "of: expected a pattern of layers, or several in a tuple, got 3"),
        ({"params": 0.5, "of": (1,)}, "of: expected a pattern"),
        ({"latency": 0.5, "of": "1"}, "neither is bounded"),
        ({"params": 3, "of": "1"}, r"a budget of 3 params \(0.0006\) cannot be reached"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        fxprune.compile(model(), [X], fxprune.Budget(**arguments), **OPTIONS)

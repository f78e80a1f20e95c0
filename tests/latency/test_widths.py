"""Widths come in the multiples that the hardware works in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.budget.constraints import Constraints
from fxprune.latency.layout import layout_of
from fxprune.latency.operation import Operation
from fxprune.latency.widths import MULTIPLES, liked_multiple, usual_widths
from tests.support.latency import Fake
from tests.support.pruning import linear_coupling


@pytest.mark.slow
def test_measure_finds_the_multiple_that_the_hardware_works_in(network: Any, clock: list[Fake]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 96), nn.ReLU(), nn.Linear(96, 128), nn.ReLU(), nn.Linear(128, 3)).eval()
    pruned = fxprune.compile(model, [torch.randn(4, 8)], 0.5, round_to="measure", progress=False)
    found = fxprune.report(pruned)
    assert all(row.after % 8 == 0 for row in found.groups) and found.units_removed
    (note,) = [note for note in found.notes if note.startswith("round_to=")]
    assert note.startswith("round_to=8: multiples of 1 take ") and "multiples of 8 take 0 % longer" in note
    twice = fxprune.compile(model, [torch.randn(4, 8)], 0.5, round_to="measure", steps=2, progress=False)
    assert note in fxprune.report(twice).notes
    small_one = fxprune.compile(*[network[0], [network[1]]], 0.5, round_to="measure", progress=False)
    assert any("round_to=1: " in n for n in fxprune.report(small_one).notes) or any(
        "round_to=8" in n for n in fxprune.report(small_one).notes
    )


@pytest.mark.parametrize("liked", MULTIPLES)
def test_each_multiple_is_found(liked: int) -> None:
    layout = layout_of(linear_coupling(8, 128, 128, 4), 1, fused=True)

    def compare(operation: Operation, widths: Sequence[tuple[int, ...]]) -> list[float]:
        return [math.prod(each) * (1.0 if all(w % liked == 0 for w in each) else 1.3) for each in widths]

    found, why = liked_multiple(layout, compare)
    assert found == liked and why.startswith(f"round_to={liked}: ")
    assert liked_multiple(layout, lambda *_: [])[0] == 1


def test_round_to_takes_a_number_or_a_word(network: Any) -> None:
    with pytest.raises(ValueError, match="round_to must be 'auto', 'measure' or an int of at least 1, got 'best'"):
        fxprune.compile(network[0], [network[1]], 0.5, round_to="best", progress=False)


def chain(*sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).eval()


def kept(model: nn.Module, **options: Any) -> list[int]:
    """Returns the widths of what is left at half of the parameters, or of the units."""
    given: dict[str, Any] = {"budget": 0.5, "recover": None, "method": "l2", "progress": False} | options
    pruned = fxprune.compile(model, [torch.randn(4, 8)], **given)
    assert fxprune.report(pruned).verified
    return [row.after for row in fxprune.report(pruned).groups]


def test_by_default_widths_are_what_the_processor_works_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = chain(8, 160, 32, 6, 3)
    for capability, wide, narrow in (("AVX512", 16, 4), ("AVX2", 8, 4), ("DEFAULT", 4, 4)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        widths = kept(model)
        assert widths[0] % wide == 0 and widths[1] % narrow == 0 and widths != [160, 32, 6]
    assert kept(model, round_to=1) != widths
    assert kept(model, budget=None, ratios=0.3) == [112, 23, 5]  # shares are what was asked for


def test_multiples_give_way_where_little_is_to_stay() -> None:
    model = chain(8, 128, 128, 3)
    few = kept(model, budget=0.01)
    assert all(n & (n - 1) == 0 for n in few) and max(few) < 16
    with pytest.raises(fxprune.BudgetError):
        kept(model, budget=0.01, round_to=16)


def test_processes_on_unlike_processors_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr("fxprune.latency.widths.gathered", lambda mine: [mine, 2 * mine])
    assert usual_widths(chain(8, 16, 3), None, Constraints()).round_to == 16

"""Multiples that devices work in, and widths that are none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxprune.budget.multiples import awkward, itemsize_of, usual_multiple
from fxprune.results.record import GroupRow


def test_what_devices_work_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert [usual_multiple(torch.device("cpu"), size) for size in (8, 4, 2)] == [8, 16, 32]
    assert [usual_multiple(torch.device("cuda"), size) for size in (4, 2, 1)] == [4, 8, 16]


def test_most_weights_say_how_wide_they_are() -> None:
    model = nn.ModuleList([nn.Linear(8, 8).bfloat16(), nn.Linear(2, 2)])
    assert itemsize_of(model) == 2 and itemsize_of(nn.ReLU()) == 4


def test_awkward_widths_are_those_with_room_for_better_ones() -> None:
    def row(before: int, after: int, kind: str = "channel") -> GroupRow:
        return GroupRow("a", kind, ("a",), before, after)

    odd = [row(64, 31), row(64, 4), row(64, 40), row(20, 10), row(20, 7), row(20, 20), row(64, 5, "head"), row(8, 3)]
    assert awkward(odd, 8) == [31, 7]

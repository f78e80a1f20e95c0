"""How far two outputs are apart."""

from __future__ import annotations

import pytest
import torch

from fxprune.deployment.comparison import difference


def test_difference() -> None:
    nan, inf = float("nan"), float("inf")
    one = torch.tensor([1.0, -4.0])
    assert difference(one, torch.tensor([1.0, -3.0])) == 0.25
    assert difference(one * 1e-9, one * 1.5e-9) == pytest.approx(0.5)  # no absolute tolerance
    assert difference(torch.zeros(2), torch.full((2,), 1e-3)) == pytest.approx(1e-3)
    assert difference(torch.tensor([-inf, 2.0]), torch.tensor([-inf, 2.0])) == 0
    assert difference(torch.tensor([-inf, 2.0]), torch.tensor([inf, 2.0])) == inf
    assert difference(torch.tensor([nan, 2.0]), torch.tensor([1.0, 2.0])) == inf
    assert difference(torch.tensor([3]), torch.tensor([3])) == 0
    assert difference(torch.tensor([3]), torch.tensor([4])) == inf
    assert difference(one, one.double()) == inf and difference(one, one[:1]) == inf
    assert difference(torch.tensor([nan]), torch.tensor([nan])) != 0
    assert difference(torch.tensor([1j]), torch.tensor([2j])) == 1

"""CHIP: the change of the nuclear norm."""

from __future__ import annotations

import pytest
import torch

from fxprune.scoring import score
from fxprune.scoring.chip import ChannelIndependence, norm_changes
from tests.support.formulas import assert_same, built, inputs, ranked
from tests.support.tensors import random


@pytest.mark.parametrize("name", ["conv", "mlp"])
def test_chip_is_the_change_of_the_nuclear_norm(name: str) -> None:
    coupling, model, x, y = built(name)
    a = model.first(x).detach()
    expected = {}
    for layer, value in (("a", a), ("b", model.second(a).detach())):
        change = torch.zeros(value.shape[1], dtype=torch.float64)
        for sample in value.reshape(*value.shape[:2], -1):
            for unit in range(len(sample)):
                masked = sample.clone()
                masked[unit] = 0
                norms = [torch.linalg.matrix_norm(m, "nuc") for m in (sample, masked)]
                change[unit] += (norms[0] - norms[1]).abs()
        expected[layer] = change / len(value)
    found = score(coupling, inputs(x, y), ChannelIndependence(samples=100))
    assert_same(found, ranked(coupling, expected, read=False))
    assert found["a"][2] == 0


@pytest.mark.parametrize("shape", [(7, 30), (30, 7)])
@pytest.mark.parametrize("limit", [1, 1 << 30])
def test_nuclear_norms_with_several_rows_zeroed(shape: tuple[int, int], limit: int) -> None:
    matrix = random(*shape)
    rows = [torch.tensor([0]), torch.tensor([1, 4]), torch.arange(7)]
    expected = []
    for chosen in rows:
        left = matrix.clone()
        left[chosen] = 0
        norms = [torch.linalg.matrix_norm(m, "nuc") for m in (matrix, left)]
        expected.append(norms[0] - norms[1])
    torch.testing.assert_close(norm_changes(matrix, rows, limit), torch.stack(expected), rtol=1e-6, atol=1e-6)

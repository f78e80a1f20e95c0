"""The calls that a pruned model takes, whatever it was compiled with."""

from __future__ import annotations

import torch
from torch import nn

from tests.models.fn import Fn
from tests.support.compiling import compile_verified, convolutions


def test_one_tensor_given_twice_in_the_calibration_data() -> None:
    torch.manual_seed(0)
    model = Fn(
        lambda m, q, k: m.o(m.a(q).relu() * m.b(k)), a=nn.Linear(4, 8), b=nn.Linear(4, 8), o=nn.Linear(8, 2)
    ).eval()
    x, y, z = torch.randn(5, 4), torch.randn(5, 4), torch.randn(5, 4)
    pruned = compile_verified(model, [((x, x), z)])
    with torch.no_grad():
        assert not torch.allclose(pruned(x, y), pruned(x, x))
        assert not torch.allclose(pruned(y, x), pruned(x, x))


def test_calibration_data_of_single_samples() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    pruned = compile_verified(model, [torch.randn(1, 4) for _ in range(3)])
    assert [len(pruned(torch.randn(n, 4))) for n in (1, 2, 7)] == [1, 2, 7]


def test_sizes_that_differ_between_batches_stay_dynamic() -> None:
    pruned = compile_verified(convolutions(), [torch.randn(2, 3, s, 12) for s in (12, 9, 10)])
    assert pruned(torch.randn(3, 3, 31, 12)).shape == (3, 4)


def test_no_guard_refuses_another_size_that_the_graph_can_take() -> None:
    pruned = compile_verified(convolutions(), [torch.randn(2, 3, 12, 12)])
    full = pruned(torch.randn(1, 3, 20, 27))
    assert full.shape == (1, 4) and torch.isfinite(full).all()

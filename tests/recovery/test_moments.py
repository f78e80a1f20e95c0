"""Moments summed over batches, and least squares that hold."""

from __future__ import annotations

import pytest
import torch

import fxprune
from fxprune.recovery.moments import Moments
from fxprune.recovery.regression import ridge_solve
from tests.support.compiling import compile_small, mlp


def test_moments_do_not_depend_on_the_batches() -> None:
    torch.manual_seed(0)
    x, t = torch.randn(60, 2, 5, dtype=torch.float64) + 100, torch.randn(60, 2, 3, dtype=torch.float64)
    whole, parts, merged = Moments(), Moments(), Moments()
    whole.add(x, t)
    for a, b in ((0, 1), (1, 20), (20, 20), (20, 60)):
        one = Moments()
        for each in (parts, one):
            each.add(x[a:b], t[a:b])
        merged.merge(one)
    for name in ("count", "mean_x", "mean_t", "xx", "tx"):
        want = torch.as_tensor(getattr(whole, name))
        assert all(torch.allclose(want, torch.as_tensor(getattr(each, name)), rtol=1e-9) for each in (parts, merged))
    assert torch.allclose(whole.about(0 * whole.mean_x, 0 * whole.mean_t)[1][1], t[:, 1].T @ x[:, 1], rtol=1e-9)
    assert torch.allclose(whole.xx[0] / 60, x[:, 0].T.cov(correction=0), rtol=1e-9)
    whole.raw()
    assert torch.allclose(whole.xx[1], x[:, 1].T @ x[:, 1], rtol=1e-12)


def test_a_ridge_holds_where_the_covariance_does_not() -> None:
    gram = torch.ones(3, 3, dtype=torch.float64)  # rank one
    gain = ridge_solve(gram, torch.ones(2, 3, dtype=torch.float64), 1e-6)
    assert torch.allclose(gain, torch.full((2, 3), 1 / 3, dtype=torch.float64), atol=1e-6)
    assert not ridge_solve(torch.zeros(3, 3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64), 1e-6).any()


@pytest.mark.parametrize("recover", ["covariance", "sequential"])
def test_sums_of_squares_of_half_precision_stay_finite(recover: str) -> None:
    data = [(torch.randn(8192, 8, generator=torch.Generator().manual_seed(0)) * 8).half()]
    assert fxprune.report(compile_small(mlp().half(), data, recover=recover)).verified is True

"""The metric of a layer's outputs: square errors in it are those of the loss, to first order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fxprune.scoring.engine.metric import Metric


def consumer(groups: int) -> Any:
    """Stands for a linear layer of some groups, whose outputs come as they are."""
    return SimpleNamespace(outputs=lambda y: y.reshape(len(y), groups, -1), groups=groups)


@pytest.mark.parametrize("outputs", [4, 9])
def test_an_error_counts_by_the_gradients(outputs: int) -> None:
    """With fewer outputs than columns the matrix is that of the outputs, and otherwise that of the columns."""
    torch.manual_seed(0)
    weight = torch.randn(2, outputs, 6, dtype=torch.float64)
    slopes = torch.randn(50, 2 * outputs, dtype=torch.float64)
    metric = Metric(consumer(2), weight)
    for part in slopes.split(20):
        metric.add(part)
    scaled, change = metric.scaled(50), torch.randn(6, 3, dtype=torch.float64)
    for g in range(2):
        error: Tensor = weight[g] @ change
        want = (slopes.reshape(50, 2, -1)[:, g] @ error).square().sum() / 50
        assert float((scaled[g] @ change).square().sum()) == pytest.approx(float(want), rel=1e-4)


def test_the_diagonal_counts_each_output_alone() -> None:
    slopes = torch.randn(30, 5, dtype=torch.float64)
    metric = Metric(consumer(1), torch.eye(5, dtype=torch.float64)[None], full=False)
    metric.add(slopes)
    torch.testing.assert_close(metric.scaled(30)[0], torch.diag(slopes.square().mean(0).sqrt()))

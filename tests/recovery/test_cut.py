"""Columns that do not fit into memory together: the report says whose, and what would do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxprune


@pytest.mark.parametrize("recover", ["covariance", "sequential"])
def test_blocks_of_columns_are_told(recover: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
    data = [torch.randn(400, 8)]
    with_room = fxprune.compile(model, data, 0.6, recover=recover, progress=False)
    without = fxprune.compile(model, data, 0.6, recover=recover, memory_limit=40_000, progress=False)
    assert not any("blocks" in line for line in with_room.report.skipped)
    (line,) = (line for line in without.report.skipped if "blocks" in line)
    assert line.startswith("2.weight: 64 columns in 2 blocks, for which memory_limit=40000 leaves room")
    assert "65536 would do" in line
    enough = fxprune.compile(model, data, 0.6, recover=recover, memory_limit=2 * 65_536, progress=False)
    assert not any("blocks" in line for line in enough.report.skipped)

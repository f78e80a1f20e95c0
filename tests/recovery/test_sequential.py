"""Sequential compensation: what else has drifted by the time that a layer is reached."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fxprune.capturing.captured import capture
from fxprune.recovery.sequential import find_drift
from tests.models.fn import Fn


def test_drift_is_the_other_operand_of_the_addition_behind_a_layer() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(m.conv(x))
        return (x + y).relu() + m.other(x) * 2

    parts = {"conv": nn.Conv2d(3, 3, 1, bias=False), "norm": nn.BatchNorm2d(3), "other": nn.Conv2d(3, 3, 1)}
    captured = capture(Fn(forward, **parts).eval(), (torch.randn(2, 3, 4, 4),))
    nodes = {n.args[1].target: n for n in captured.module.graph.nodes if n.target is torch.ops.aten.conv2d.default}
    drift = find_drift(nodes["conv.weight"])
    assert drift is not None and drift.skip.op == "placeholder"
    assert drift.norm is not None and drift.norm.target is torch.ops.aten.batch_norm.default
    assert find_drift(nodes["other.weight"]) is None  # it is scaled before it is added

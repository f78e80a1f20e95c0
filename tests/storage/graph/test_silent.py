"""What is silent in evaluation mode is told by what it does, and stored where it can be."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.storage.graph import silent
from tests.models.stored import DropPath, images, small
from tests.support.artifacts import same


class Odd(nn.Module):
    """Drops single values."""

    p = 0.5

    def forward(self, x: Tensor) -> Tensor:
        return torch.dropout(x, self.p, True) if self.training else x


class Blinking(nn.Module):
    """Drops everything or nothing, by Python's own generator, and scales nothing."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.other = 0.5
        self.keep = 1
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x) if self.training and random.random() < self.p else x


def test_silent_modules_are_told_by_what_they_do() -> None:
    from torchvision.ops import StochasticDepth

    linear = nn.Linear(2, 2)
    before = random.getstate(), torch.get_rng_state()
    found = silent.recognise(DropPath(0.0))
    assert isinstance(found, silent.StochasticDepth) and (found.p, found.batch, found.scale) == (0.0, False, True)
    for mode in ("row", "batch"):
        found = silent.recognise(StochasticDepth(0.01, mode))
        assert isinstance(found, silent.StochasticDepth)
        assert (found.p, found.batch, found.scale) == (0.01, mode == "batch", True)
    found = silent.recognise(Blinking(0.25))
    assert isinstance(found, silent.StochasticDepth) and (found.p, found.batch, found.scale) == (0.25, True, False)
    assert isinstance(silent.recognise(nn.Identity()), nn.Identity)
    assert isinstance(silent.recognise(Odd()), silent.Lost)
    assert silent.recognise(nn.ReLU6()) is None and silent.recognise(linear) is None
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])


def test_the_generators_of_other_devices_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    assert isinstance(silent.recognise(DropPath(0.2)), silent.StochasticDepth) and not seeds


def test_stochastic_depth_drops_as_torchvision_s() -> None:
    from torchvision.ops import StochasticDepth

    x = torch.randn(6, 3, 2, 2)
    for mode in ("row", "batch"):
        for p in (0.0, 0.4, 1.0):
            torch.manual_seed(0)
            expected = StochasticDepth(p, mode)(x)
            torch.manual_seed(0)
            assert torch.equal(silent.StochasticDepth(p, mode == "batch")(x), expected)


def test_lost_behaviour_is_told(tmp_path: Path) -> None:
    model = small()
    model.path = Odd()
    pruned = fxprune.compile(model.eval(), [images(2, 6)], 0.7, recover=None, progress=False)
    fxprune.save(pruned, tmp_path / "out")
    with pytest.warns(UserWarning, match=r"path \(.*Odd\): what this does while training is not stored"):
        loaded = fxprune.load(tmp_path / "out")
    assert same(loaded(**images(2, 6)), pruned(**images(2, 6)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fxprune.save(loaded, tmp_path / "again")
    assert (tmp_path / "again/graph.json").read_text() == (tmp_path / "out/graph.json").read_text()

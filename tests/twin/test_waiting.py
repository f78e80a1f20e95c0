"""What waits for its layer: the same from memory and from files, of which nothing is left."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
import fxprune.recovery.sequential
from fxprune.twin.waiting import waiting
from tests.support.pruning import removal


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_values_come_back_as_they_were(tmp_path: Path) -> None:
    x = torch.arange(12.0).view(3, 4)
    values = ({"a": x, "b": x.T, "whole": [1, None, torch.tensor([True])]}, {"half": x.half()})
    with waiting(200) as held:
        for number in range(3):
            held.put(number, values)
        assert len(list(tmp_path.rglob("*.pt"))) == 2  # one of three fits
        for number in (2, 0, 1):
            (first, second), (one, two) = held.take(number), values
            assert torch.equal(first["b"], one["b"]) and first["whole"][:2] == [1, None] and first["whole"][2].item()
            assert second["half"].dtype == torch.float16 and torch.equal(second["half"], two["half"])
        assert not list(tmp_path.rglob("*.pt"))
        held.put(0, values)
        assert not list(tmp_path.rglob("*.pt"))  # there is room again
    assert not list(tmp_path.iterdir())


def test_a_part_of_a_large_tensor_waits_alone(tmp_path: Path) -> None:
    """Batches are often parts of one tensor, and a file holds whatever a tensor is a view of."""
    parts = torch.arange(1e5).split(10)
    with waiting(0) as held:
        held.put(0, [parts[3]])
        (file,) = tmp_path.rglob("*.pt")
        assert file.stat().st_size < 1e4
        assert torch.equal(held.take(0)[0], parts[3])


def test_no_file_is_left_behind_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), waiting(0) as held:
        held.put(0, [torch.zeros(3)])
        assert list(tmp_path.rglob("*.pt"))
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_full_disk_and_no_folder_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with waiting(0) as held:
        with pytest.raises(
            fxprune.RecoveryError, match=r"12 bytes, .*No space left.*raise memory_limit, or set TMPDIR"
        ):
            held.put(0, [torch.zeros(3)])
        monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    with waiting(8) as held:
        held.put(0, [torch.zeros(2)])  # no folder is wanted yet
        with pytest.raises(fxprune.RecoveryError, match=r"/nonexistent.*set TMPDIR"):
            held.put(1, [torch.zeros(3)])


def test_recovery_is_the_same_whether_values_wait_in_memory_or_in_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten())
    model = nn.Sequential(*model, nn.Linear(8 * 16, 16), nn.Tanh(), nn.Linear(16, 4)).eval()
    data = [(torch.randn(16, 3, 8, 8),) for _ in range(5)]
    coupling = fxprune.couple(fxprune.capture(model, data[0]))
    removed = removal(coupling, 0, 0.4)
    here = fxprune.recover(coupling, removed, data, "sequential").tensors
    monkeypatch.setattr(fxprune.recovery.sequential, "waiting", lambda _: waiting(0))
    files, save = list[str](), torch.save
    monkeypatch.setattr(torch, "save", lambda x, path: (files.append(str(path)), save(x, path)))
    there = fxprune.recover(coupling, removed, data, "sequential").tensors
    assert files and not list(tmp_path.glob("fxprune-*"))
    assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)

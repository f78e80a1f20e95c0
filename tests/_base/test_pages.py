"""Mapped tensors: what is read of them is let go of, and reads the same again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from fxprune._base import pages
from fxprune._base.pages import mapped, paged, room, touched

MEGABYTES = 16


def resident() -> int:
    """Returns the megabytes of files that are in memory for this process."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(lines["RssFile"].split()[0]) // 1024


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file({f"t{i}": torch.full((MEGABYTES << 18,), float(i)) for i in range(4)}, tmp_path / "t.safetensors")
    return tmp_path / "t.safetensors"


@pytest.mark.skipif(sys.platform != "linux", reason="what is in memory is told by Linux")
def test_no_more_stays_in_memory_than_may(file: Path) -> None:
    before = resident()
    with paged(MEGABYTES << 20) as limited, safe_open(file, "pt") as opened:
        tensors = [mapped(opened.get_tensor(f"t{i}")) for i in range(4)]
        for _ in range(2):
            for i, tensor in enumerate(tensors):
                touched(tensor)
                assert float(tensor.sum()) == i * tensor.numel()
                assert resident() - before < 2 * MEGABYTES
        limited.release()
        assert resident() - before < MEGABYTES
    assert [float(tensor[-1]) for tensor in tensors] == [0, 1, 2, 3]


def test_layers_say_what_they_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go: list[int] = []
    monkeypatch.setattr(pages, "_let_go", lambda place, size: let_go.append(size))
    layer, other = nn.Linear(4, 4), nn.Linear(4, 4)
    with paged(100), torch.no_grad():
        for each in (layer, other):
            mapped(each.weight), mapped(each.bias)
        layer(torch.randn(2, 4))
        layer(torch.randn(2, 4))
        assert not let_go
        other(torch.randn(2, 4))
        assert let_go
        count = len(let_go)
    other(torch.randn(2, 4))
    assert len(let_go) == 2 * count  # once more at the end, and nothing after it


def test_without_mapped_tensors_nothing_is_watched() -> None:
    assert room() is None
    touched(torch.ones(2))
    tensor = torch.ones(2)
    assert mapped(tensor) is tensor
    with paged(5):
        assert room() == 5
        touched("no tensor"), touched(torch.empty(2, device="meta")), touched(tensor)
        with paged(7):
            assert room() == 7
        assert room() == 5

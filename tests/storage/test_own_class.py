"""A model in its own class comes back from a file with its integers, and with another head."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.storage import manifest


class Net(nn.Module):
    """Says how wide it is where only another way of calling reads it."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.width, self.stem, self.head = 32, nn.Linear(6, 32), nn.Linear(32, classes)

    def features(self, x: Tensor) -> Tensor:
        return self.stem(x).relu().view(-1, self.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).relu())


def through(model: Net, x: Tensor) -> Tensor:
    return model.head(model.features(x))


def pruned(x: Tensor) -> tuple[Net, Net]:
    torch.manual_seed(0)
    model = Net()
    options = {"form": "module", "recover": None, "progress": False, "also": [through]}
    return model, fxprune.compile(model, x, 0.6, **options)


def test_integers_that_another_way_reads_are_kept(tmp_path: Path) -> None:
    x = torch.randn(4, 6)
    model, home = pruned(x)
    assert home.width == home.stem.out_features < 32
    fxprune.save(home, tmp_path / "net")
    again = fxprune.load(tmp_path / "net", Net())
    assert again.width == home.width and model.width == 32
    torch.testing.assert_close(through(again, x), home(x), rtol=0, atol=0)


@pytest.mark.parametrize("value", [0, -3, 33, 10**9, "many", None, 1.5, True])
def test_integers_of_a_stranger_are_no_larger_than_the_models(tmp_path: Path, value: object) -> None:
    x = torch.randn(4, 6)
    _, home = pruned(x)
    target = tmp_path / "net"
    fxprune.save(home, target)
    data = json.loads((target / "numbers.json").read_text())
    rows = [[path, steps, value if steps == ["width"] else number] for path, steps, number in data["numbers"]]
    (target / "numbers.json").write_text(json.dumps({"numbers": rows}))
    manifest.seal(target, {}, "the model is of its own class")
    try:
        found = fxprune.load(target, Net()).width
    except fxprune.PlanError:
        return
    assert found == 32


def test_a_head_that_was_put_on_since_is_loaded_onto_a_model_with_one(tmp_path: Path) -> None:
    x = torch.randn(4, 6)
    _, home = pruned(x)
    home.head = nn.Linear(home.head.in_features, 3)
    fxprune.save(home, tmp_path / "net")
    again = fxprune.load(tmp_path / "net", Net(classes=3))
    torch.testing.assert_close(again(x), home(x), rtol=0, atol=0)
    with pytest.raises(fxprune.PlanError, match=r"head.weight: the plan leaves \[10, \d+\], got \[3, \d+\]"):
        fxprune.load(tmp_path / "net", Net())


def test_all_files_are_read_by_whom_a_new_file_is(tmp_path: Path) -> None:
    _, home = pruned(torch.randn(4, 6))
    mask = os.umask(0o022)
    try:
        fxprune.save(home, tmp_path / "net")
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / "net").iterdir()} == {0o644}
        fxprune.export(home, tmp_path / "net.onnx")
        assert (tmp_path / "net.onnx").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(mask)

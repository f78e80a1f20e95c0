"""OpenVINO's files give what the model gives, at other sizes as well."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.models.stored import llama


class Two(nn.Module):
    """Two inputs, one of which is scaled, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 8, 3)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        y = self.second(self.first(x).relu())
        return {"map": y, "scores": y.mean((2, 3)) * scale}


def pruned(x: Tensor, scale: Tensor) -> Any:
    torch.manual_seed(0)
    batch = {"x": x, "scale": scale}
    return fxprune.compile(Two().eval(), [batch], 0.6, method="l2", recover=None, progress=False)


def test_a_file_of_openvino_gives_what_the_model_gives(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    x, scale = torch.randn(2, 3, 9, 9), torch.rand(2, 8)
    model = pruned(x, scale)
    found = fxprune.export(model, tmp_path / "model.xml")
    assert found.format == "OpenVINO IR" and [path.name for path in found.beside] == ["model.bin"]
    assert found.max_error < 1e-4 and len(found.compared) >= 2
    compiled = openvino.Core().compile_model(tmp_path / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    other = torch.randn(5, 3, 12, 7)
    with torch.no_grad():
        want = model(x=other, scale=torch.ones(5, 8))
    got = list(compiled({"x": other.numpy(), "scale": torch.ones(5, 8).numpy()}).values())
    for a, b in zip(want.values(), got, strict=True):
        torch.testing.assert_close(torch.from_numpy(b), a, rtol=1e-4, atol=1e-5)


def test_what_is_no_tensor_is_no_input_of_the_file(tmp_path: Path) -> None:
    """Capture gives ``use_cache`` of itself; OpenVINO had an input of unknown rank for it, which it could not compile."""
    openvino = pytest.importorskip("openvino")
    tokens = {"input_ids": torch.randint(0, 30, (4, 9), generator=torch.Generator().manual_seed(0))}
    found = fxprune.export(llama(), tmp_path / "model.xml", tokens)
    assert found.max_error < 1e-4
    assert [entry.any_name for entry in openvino.Core().read_model(found.path).inputs] == ["input_ids"]


def test_a_model_in_bfloat16_is_refused_in_words(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    with pytest.raises(fxprune.ExportError, match="bfloat16"):
        fxprune.export(nn.Linear(4, 3).bfloat16(), tmp_path / "model.xml", torch.randn(2, 4).bfloat16())
    assert not list(tmp_path.iterdir())


def test_the_extra_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(fxprune.MissingExtraError, match=r"fxprune\[openvino\]"):
        fxprune.export(nn.Linear(4, 3), tmp_path / "model.xml", torch.randn(2, 4))

"""A file in int8 by its runtime's own quantizer: near the model, whole, or not there at all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.deployment.comparison import difference
from tests.support.exports import call_of, outputs_of, pruned_of, session_of

#: The quantizers: what has to be there, and the suffix of the files.
QUANTIZERS = {"onnxruntime": (("onnxruntime", "onnxscript"), ".onnx"), "nncf": (("openvino", "nncf"), ".xml")}

#: What is free; None is all that is free in the model.
SHAPES = {"cnn": {"x": {0: torch.export.Dim("batch")}}, "bert": None}


def suffix_of(quantizer: str) -> str:
    packages, suffix = QUANTIZERS[quantizer]
    for package in packages:
        pytest.importorskip(package)
    return suffix


def batches_of(name: str) -> list[Any]:
    calls = [call_of(name, 8), call_of(name, 6)]
    return [dict(reversed(kwargs.items())) or args[0] for args, kwargs in calls]  # an order that is not the model's


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("name", ["cnn", pytest.param("bert", marks=pytest.mark.slow)])
def test_a_file_in_int8_is_near_the_model(name: str, quantizer: str, tmp_path: Path) -> None:
    suffix = suffix_of(quantizer)
    pruned = pruned_of(name)
    found = fxprune.export_int8(pruned, tmp_path / f"int8{suffix}", batches_of(name), dynamic_shapes=SHAPES[name])
    close = found.beside_floating_point
    assert close is not None and close.error is not None and 0 < close.error < 0.1
    assert close.samples == 14 and close.agreement is not None and close.agreement > 0.8
    assert found.max_error < 1e-4 and found.compared
    assert "before int8 equal to the model" in str(found) and "beside floating point: agreement" in str(found)
    assert found.to_dict()["beside_floating_point"]["samples"] == 14
    assert {path.name for path in tmp_path.iterdir()} == {found.path.name, *(path.name for path in found.beside)}
    if suffix == ".onnx":
        onnx = pytest.importorskip("onnx")
        assert "QuantizeLinear" in {node.op_type for node in onnx.load(found.path).graph.node}
        call = call_of(name, 3)
        (want,), (got,) = outputs_of(pruned, call), outputs_of(session_of(found.path), call)
        assert 0 < difference(want, got) < 0.1


class Masked(nn.Module):
    """Attention with large scores, of which a mask leaves out some."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Linear(8, 24)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        query, key, value = self.weights(x)[:, None].chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(query * 8, key, value, mask[:, None, None])


def test_masks_do_not_drown_the_scores_of_attention(tmp_path: Path) -> None:
    suffix_of("onnxruntime")
    torch.manual_seed(0)
    mask = torch.ones(16, 6, dtype=torch.bool)
    mask[:, 4:] = False
    batch = {"x": torch.randn(16, 6, 8), "mask": mask}
    close = fxprune.export_int8(Masked().eval(), tmp_path / "int8.onnx", [batch]).beside_floating_point
    assert close is not None and close.error is not None and close.error < 0.1


def test_settings_go_to_the_quantizer(tmp_path: Path) -> None:
    suffix_of("onnxruntime")
    onnx = pytest.importorskip("onnx")
    data = batches_of("cnn")[:1]

    def zero_points(**settings: Any) -> int:
        path = tmp_path / "int8.onnx"
        fxprune.export_int8(pruned_of("cnn"), path, data, settings=settings, dynamic_shapes={})
        return max(x.dims[0] if x.dims else 1 for x in onnx.load(path).graph.initializer if "zero_point" in x.name)

    assert zero_points() > 1 and zero_points(per_channel=False) == 1


def test_what_fails_leaves_the_file_of_before(tmp_path: Path) -> None:
    suffix_of("onnxruntime")
    path, data = tmp_path / "int8.onnx", batches_of("cnn")[:1]
    path.write_text("before")
    with pytest.raises(fxprune.ExportError, match=r"onnxruntime cannot quantize the model: TypeError.*'rubbish'"):
        fxprune.export_int8(pruned_of("cnn"), path, data, settings={"rubbish": 1}, dynamic_shapes={})
    with pytest.raises(fxprune.ExportError, match="found nothing to quantize in the model"):
        fxprune.export_int8(nn.ReLU(), path, [torch.randn(4, 3)])
    assert path.read_text() == "before" and [file.name for file in tmp_path.iterdir()] == ["int8.onnx"]


def test_what_it_does_not_take_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = nn.Linear(4, 3), [torch.randn(2, 4)]
    with pytest.raises(
        fxprune.ExportError, match=r"torch\.export has no quantizer of its own, those of \.onnx and \.xml"
    ):
        fxprune.export_int8(model, tmp_path / "int8.pt2", data)
    with pytest.raises(fxprune.ExportError, match=r"ends in one of \.onnx"):
        fxprune.export_int8(model, tmp_path / "int8.bin", data)
    with pytest.raises(fxprune.CalibrationError):
        fxprune.export_int8(model, tmp_path / "int8.onnx", [])
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    with pytest.raises(fxprune.MissingExtraError, match=r"fxprune\[export\]"):
        fxprune.export_int8(model, tmp_path / "int8.onnx", data)
    if suffix_of("nncf"):
        monkeypatch.setitem(sys.modules, "nncf", None)
        with pytest.raises(fxprune.MissingExtraError, match=r"fxprune\[nncf\]"):
            fxprune.export_int8(model, tmp_path / "int8.xml", data)
    assert not list(tmp_path.iterdir())

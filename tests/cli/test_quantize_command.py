"""`fxprune quantize`: a saved model in int8, as the file of a runtime."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import fxprune
from tests.support.cli import TINY, complaint, done, misuse


@pytest.mark.slow
def test_int8_beside_floating_point(here: Path) -> None:
    pytest.importorskip("torchao")
    done("compile", *TINY, "--weights", "none", "--budget", "0.6", "--out", "out", "-q")
    found = done("quantize", "out", "int8.pt2", "--data", "mine:loader", "--json")
    data = json.loads(found.stdout)
    assert (data["path"], data["format"], data["max_error"]) == ("int8.pt2", "torch.export", 0)
    assert data["beside_floating_point"]["explained"] > 0.9
    program = torch.export.load(here / "int8.pt2")
    assert torch.int8 in {value.dtype for value in program.state_dict.values()}
    pytest.importorskip("onnxruntime")
    text = done("quantize", "out", "int8.onnx", "--data", "mine:loader").stdout
    assert (
        text.startswith("int8.onnx: ONNX")
        and "tolerance 2e-01" in text
        and "beside floating point: " in text
        and "explained variance 0.9" in text
    )
    assert "tolerance 1e-12" in complaint(
        "quantize", "out", "none.onnx", "--data", "mine:loader", "--tolerance", "1e-12"
    )


def test_int8_by_the_quantizer_of_the_files_own_runtime(here: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    own = ("--data", "mine:loader", "--quantizer", "runtime")
    done("compile", *TINY, "--weights", "none", "--budget", "0.6", "--out", "out", "-q")
    data = json.loads(done("quantize", "out", "int8.onnx", *own, "--json").stdout)
    assert data["path"] == "int8.onnx" and data["max_error"] < 1e-4
    assert data["beside_floating_point"]["explained"] > 0.9
    assert "--quantizer runtime: int8.pt2: torch.export has no quantizer" in misuse("quantize", "out", "int8.pt2", *own)
    assert "--opset goes with --quantizer torchao" in misuse("quantize", "out", "int8.onnx", *own, "--opset", "20")
    assert "tolerance 1e-12" in complaint("quantize", "out", "none.onnx", *own, "--tolerance", "1e-12")
    assert not (here / "none.onnx").exists()


def test_what_it_wants(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done("compile", *TINY, "--weights", "none", "--budget", "0.6", "--out", "out", "-q")
    data = ("--data", "mine:loader")
    assert "ends in one of .onnx, .pt2" in misuse("quantize", "out", "int8.engine", *data)
    assert "; did you mean .onnx?" in misuse("quantize", "out", "int8.onx", *data)
    assert "mine.py/int8.pt2: there is no directory mine.py" in misuse("quantize", "out", "mine.py/int8.pt2", *data)
    assert "there is no directory nowhere" in misuse("quantize", "out", "nowhere/int8.pt2", *data)
    assert "only an .onnx file has an opset" in misuse("quantize", "out", "int8.pt2", *data, "--opset", "18")
    assert "Missing option '--data'" in misuse("quantize", "out", "int8.pt2")
    monkeypatch.setitem(sys.modules, "torchao.quantization.pt2e.quantize_pt2e", None)
    assert "pip install 'fxprune[quantize]'" in complaint("quantize", "out", "int8.pt2", *data)
    assert fxprune.report(fxprune.load(here / "out")).form == "graph"

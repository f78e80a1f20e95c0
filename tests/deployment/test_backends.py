"""Every backend on every kind of model: compiled, ONNX, torch.export, AOTInductor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.runtimes import onnx as onnx_files
from tests.support.exports import MODELS, assert_equal, call_of, pruned_of, session_of
from tests.support.marks import ALL, but_slow


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_torch_compile_takes_the_whole_graph(name: str) -> None:
    import torch._inductor.config

    torch._dynamo.reset()
    pruned = pruned_of(name)
    # generating code takes a minute each, most of it in the C++ compiler: by default the package of `test_aoti` alone
    backend = "inductor" if name == "cnn" and ALL in os.environ else "aot_eager"
    compiled = torch.compile(pruned, fullgraph=True, backend=backend)
    with torch._inductor.config.patch(compile_threads=1):  # starting workers takes longer than the work
        assert_equal(pruned, compiled, call_of(name, 3))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_onnx(name: str, exported: Any) -> None:
    found = exported(name, ".onnx")
    assert found.format == "ONNX" and found.max_error <= 1e-4 and found.opset >= 18
    assert found.bytes == found.path.stat().st_size and not found.beside
    assert [shapes[0][0] for shapes in found.compared] == [4, 5, 1]
    # onnxruntime's adaptive pooling to 2 x 2 is another where it does not divide the size
    assert ("fixed in the file" in found.note and "fixed in the file" in str(found)) is (name == "cnn")
    for batch, length in ((2, 10), (7, 13), (1, 5)):
        assert_equal(pruned_of(name), session_of(found.path), call_of(name, batch, length))


@pytest.mark.parametrize("name", but_slow(MODELS, quick=("cnn",)))
def test_pt2(name: str, exported: Any) -> None:
    found = exported(name, ".pt2")
    assert found.format == "torch.export" and found.max_error == 0 and found.opset is None and not found.note
    loaded = torch.export.load(found.path).module()
    for batch, length in ((2, 10), (7, 13), (1, 5)):
        assert_equal(pruned_of(name), loaded, call_of(name, batch, length))


@pytest.mark.slow
def test_aoti(exported: Any) -> None:
    with torch._inductor.config.patch(compile_threads=1):
        found = exported("cnn", ".aoti.pt2")
    assert found.format == "AOTInductor package" and found.max_error <= 1e-4
    loaded = torch._inductor.aoti_load_package(str(found.path))
    for batch in (4, 7, 1):
        assert_equal(pruned_of("cnn"), loaded, call_of("cnn", batch))


@pytest.mark.slow
def test_onnx_names_and_free_sizes(exported: Any) -> None:
    import onnx

    graph = onnx.load(exported("bert", ".onnx").path).graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {"input_ids": ["batch", "length"], "attention_mask": ["batch", "length"], "logits": ["batch", 2]}


@pytest.mark.slow
def test_large_weights_lie_beside_an_onnx_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_files, "INLINE_LIMIT", 0)
    model, x = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 3)), torch.randn(2, 64)
    for _ in range(2):  # the second takes the place of the first
        found = fxprune.export(model, tmp_path / "model.onnx", x)
        assert [path.name for path in found.beside] == ["model.onnx.data"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
        assert found.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
        assert found.beside[0].stat().st_size >= 4 * 64 * 64
        assert_equal(model, session_of(found.path), ((torch.randn(5, 64),), {}))


@pytest.mark.slow
def test_small_weights_leave_no_others_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Linear(64, 3), torch.randn(2, 64)
    with monkeypatch.context() as patch:
        patch.setattr(onnx_files, "INLINE_LIMIT", 0)
        fxprune.export(model, tmp_path / "model.onnx", x)
    assert fxprune.export(model, tmp_path / "model.onnx", x).beside == ()
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]

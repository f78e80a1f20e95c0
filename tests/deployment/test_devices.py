"""The runtimes of phones and small devices: their files give what the model gives, or say what they need."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

import fxprune
from fxprune.deployment.comparison import difference
from tests.support.exports import MODELS, call_of, outputs_of, pruned_of
from tests.support.marks import but_slow


class Kind(NamedTuple):
    """What a kind of file needs, and is called."""

    package: str
    extra: str
    format: str
    #: Models with operators that it does not have.
    lacks: tuple[str, ...] = ()


KINDS = {
    ".pte": Kind("executorch.runtime", "executorch", "ExecuTorch program"),
    ".ncnn.param": Kind("ncnn", "ncnn", "ncnn net", lacks=("bert",)),
    ".tflite": Kind("litert_torch", "litert", "LiteRT model"),
}


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize("name", but_slow(MODELS, quick=("cnn",)))
def test_a_file_gives_what_the_model_gives(name: str, suffix: str, tmp_path: Path) -> None:
    pytest.importorskip(KINDS[suffix].package)
    if name in KINDS[suffix].lacks:
        with pytest.raises(fxprune.ExportError, match="has no layer for Gather"):
            fxprune.export(pruned_of(name), tmp_path / f"model{suffix}")
        assert not list(tmp_path.iterdir())
        return
    found = fxprune.export(pruned_of(name), tmp_path / f"model{suffix}")
    assert found.format == KINDS[suffix].format and found.max_error < 1e-4
    assert {path.name for path in tmp_path.iterdir()} == {found.path.name, *(path.name for path in found.beside)}


@pytest.mark.parametrize("suffix", KINDS)
def test_the_extra_is_named_where_it_is_missing(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")  # by way of which some are made
    package = KINDS[suffix].package.partition(".")[0]
    monkeypatch.setitem(sys.modules, package, None)
    for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(fxprune.MissingExtraError, match=rf"fxprune\[{KINDS[suffix].extra}\]"):
        fxprune.export(nn.Linear(4, 3), tmp_path / f"model{suffix}", torch.randn(2, 4))
    assert not list(tmp_path.iterdir())


def test_a_program_of_executorch_takes_sizes_up_to_those_of_the_example(tmp_path: Path) -> None:
    runtime = pytest.importorskip("executorch.runtime")
    pruned = pruned_of("cnn")
    found = fxprune.export(pruned, tmp_path / "model.pte", call_of("cnn", 4))
    assert found.conditions == ("x.shape[0] <= 4", "x.shape[2] <= 8", "x.shape[3] <= 8")
    assert all(shape[0][0] <= 4 for shape in found.compared) and len(found.compared) == 3
    program = runtime.Runtime.get().load_program(found.path)
    for batch in (1, 2, 4):
        call = call_of("cnn", batch)
        (got,) = program.load_method("forward").execute([call[0][0]])
        assert difference(outputs_of(pruned, call)[0], got) < 1e-4
    wide = fxprune.export(
        pruned, tmp_path / "model.pte", call_of("cnn", 4), dynamic_shapes={"x": {0: torch.export.Dim("batch", max=16)}}
    )
    assert wide.conditions == ("x.shape[0] <= 16",) and max(shape[0][0] for shape in wide.compared) == 5


def test_a_net_of_ncnn_is_for_one_sample_of_one_size(tmp_path: Path) -> None:
    ncnn = pytest.importorskip("ncnn")
    pytest.importorskip("pnnx")
    pruned, path = pruned_of("cnn"), tmp_path / "model.ncnn.param"
    with pytest.raises(fxprune.ExportError, match="files of ncnn are for one sample of one size"):
        fxprune.export(pruned, path, dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    found = fxprune.export(pruned, path)
    assert found.compared == (((1, 3, 8, 8),),) and [file.name for file in found.beside] == ["model.ncnn.bin"]
    call = call_of("cnn", 1)
    net = ncnn.Net()
    assert not net.load_param(str(path)) and not net.load_model(str(found.beside[0]))
    extractor = net.create_extractor()
    extractor.input("in0", ncnn.Mat(call[0][0].numpy(), batch_index=0).clone())
    _, got = extractor.extract("out0")
    assert difference(outputs_of(pruned, call)[0], torch.from_numpy(got.numpy(batch_index=0).copy())) < 1e-2
    timed = fxprune.bench(
        [pruned], call_of("cnn", 2)[0][0], batch_sizes=(1, 2), backends=("ncnn",), repeats=1, seconds=0.0
    )
    assert [row.batch_size for row in timed.rows] == [
        1
    ] and "ncnn runs one sample at a time, got a batch of 2" in timed.failed[0]

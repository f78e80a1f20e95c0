"""int8: as near as eight bits allow, and the accuracy on real data stays."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune
from fxprune.contrib import demo
from fxprune.deployment.comparison import difference
from tests.models.stored import llama
from tests.support.exports import MODELS, call_of, outputs_of, pruned_of, session_of
from tests.support.weights import fingerprint


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_int8(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    pruned = pruned_of(name)
    before = fingerprint(pruned)
    calls = [call_of(name, 8), call_of(name, 9)]
    int8 = fxprune.quantize(pruned, [kwargs or args[0] for args, kwargs in calls])
    assert fingerprint(pruned) == before
    assert {p.dtype for p in int8.state_dict().values()} >= {torch.int8}
    assert fxprune.report(int8) is fxprune.report(pruned)
    call = call_of(name, 6)
    (expected,), (got,) = outputs_of(pruned, call), outputs_of(int8.eval(), call)
    assert 0 < difference(expected, got) < 0.1
    assert fxprune.export(int8, tmp_path / "int8.pt2").max_error == 0
    if name == "cnn":  # rounding may fall the other way between two integers
        found = fxprune.export(int8, tmp_path / "int8.onnx", tolerance=0.05)
        assert difference(got, outputs_of(session_of(found.path), call)[0]) < 0.05


@pytest.mark.slow
def test_int8_keeps_the_accuracy_of_real_data() -> None:
    pytest.importorskip("torchao")
    pytest.importorskip("sklearn")
    digits = demo.load_digits()
    model, calibration = demo.make_model(width=8), demo.batches(digits.train)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(3):
        for x, y in calibration:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model.train()(x), y).backward()
            optimizer.step()
    pruned = fxprune.compile(model.eval(), calibration, 0.6, progress=False)
    int8 = fxprune.quantize(pruned, calibration[:4])
    before, after = (demo.accuracy(network, digits.test) for network in (pruned, int8))
    assert before > 85 and after > before - 2


def test_a_language_model_of_its_own_class_needs_no_argument_that_capture_gave() -> None:
    """``use_cache`` is what export needs, not what the user's batches hold."""
    pytest.importorskip("torchao")
    model = llama()
    data = [{"input_ids": torch.randint(0, 30, (4, 9), generator=torch.Generator().manual_seed(i))} for i in range(2)]
    pruned = fxprune.compile(model, data, 0.8, form="module", progress=False)
    int8 = fxprune.quantize(pruned, data)
    with torch.no_grad():
        wanted, got = pruned(**data[0], use_cache=False).logits, int8(**data[0])["logits"]
    assert 0 < difference(wanted, got) < 0.1
    with pytest.raises(TypeError):
        int8(**data[0], use_cache=False)


def test_what_is_quantized_is_not_saved_and_a_batch_that_does_not_fit_is_named(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    pruned = pruned_of("cnn")
    args, kwargs = call_of("cnn", 4)
    data = [kwargs or args[0]]
    int8 = fxprune.quantize(pruned, data)
    with pytest.raises(fxprune.FxpruneError, match="the model is quantized"):
        fxprune.save(int8, tmp_path / "int8")
    assert not (tmp_path / "int8").exists()
    with pytest.raises(fxprune.CalibrationError, match="batch 0"):
        fxprune.quantize(pruned, [{"nothing": torch.zeros(2)}])


def test_quantize_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(fxprune.ExportError, match=r"quantize: expected a torch\.nn.Module, got str"):
        fxprune.quantize("model", [torch.randn(2, 4)])
    monkeypatch.setitem(sys.modules, "torchao.quantization.pt2e.quantize_pt2e", None)
    with pytest.raises(fxprune.MissingExtraError, match=r"torchao.*pip install 'fxprune\[quantize\]'"):
        fxprune.quantize(nn.Linear(4, 3), [torch.randn(2, 4)])


@pytest.mark.slow
def test_quantize_says_if_there_is_nothing_to_do() -> None:
    pytest.importorskip("torchao")
    with pytest.raises(fxprune.ExportError, match="found nothing to quantize"):
        fxprune.quantize(nn.LayerNorm(4), [torch.randn(2, 4)])

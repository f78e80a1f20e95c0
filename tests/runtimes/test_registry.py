"""The registry of runtimes: what is refused, and what is found."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

import fxprune
from fxprune.runtimes import AotInductor, Eager, OnnxRuntime, registry
from fxprune.runtimes.registry import BackendName, names, runtime_for, runtime_of


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The runtimes that are there from the start; what a test registers is forgotten after it."""
    found = {name: runtime_of(name) for name in get_args(BackendName)}
    monkeypatch.setattr(registry, "_RUNTIMES", found)
    return found


@dataclass(frozen=True)
class Filed(Eager):
    """One that has all parts."""

    name: str = "filed"
    suffix: str = ".filed"
    format: str = "a file"

    def write(self, program: Any, path: Path) -> None: ...

    def load(self, path: Path, program: Any) -> Any: ...


def without(*parts: str) -> Any:
    """Returns a runtime that lacks some parts."""
    kept = {part: getattr(Filed(), part) for part in (*registry._PARTS, *registry._FILE_PARTS) if part not in parts}
    return make_dataclass("Lacking", kept)(*kept.values())


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        (Eager(), "a runtime named 'eager' is registered already"),
        (replace(OnnxRuntime(), name="onnx"), r"runtime 'onnx': 'onnxruntime' writes \.onnx files already"),
        (Eager, r"expected a runtime, got the class Eager: give Eager\(\)"),
        ("eager", "expected a runtime with name, fuses, .* 'eager' lacks name, fuses, devices, peak_on, runner"),
        (None, "expected a runtime with name, fuses, devices, peak_on, runner; None lacks"),
        (without("runner", "fuses"), r"lacks fuses, runner$"),
        (without("load"), r"with name, .*, suffix, format, write, load; .* lacks load$"),
        (without("suffix"), "lacks suffix$"),
        (replace(Eager(), name=3), "name: expected a str, got 3"),
        (replace(Eager(), name=""), "name: expected text, got ''"),
        (replace(Eager(), name="own", fuses="no"), "fuses: expected a bool, got 'no'"),
        (replace(Eager(), name="own", devices="cpu"), "devices: expected strings in a tuple, got 'cpu'"),
        (replace(Eager(), name="own", peak_on=(0,)), r"peak_on: expected strings in a tuple, got \(0,\)"),
        (replace(Filed(), suffix="filed"), r"'filed': suffix: expected one such as '\.onnx', got 'filed'"),
        (replace(Filed(), suffix="."), "suffix: expected one such as"),
    ],
)
def test_what_is_no_runtime_is_refused(runtime: Any, message: str, known: dict[str, Any]) -> None:
    before = dict(known)
    with pytest.raises(fxprune.BackendError, match=message):
        fxprune.register_runtime(runtime)
    assert known == before


def test_a_runtime_without_a_file_and_one_with_it_are_both_welcome() -> None:
    fxprune.register_runtime(replace(Eager(), name="again"))
    fxprune.register_runtime(Filed())
    fxprune.register_runtime(
        replace(OnnxRuntime(), name="opset 20", opset=20, suffix="")
    )  # writes, but no files of its own
    assert names()[-3:] == ("again", "filed", "opset 20")
    assert isinstance(runtime_of("filed"), Filed) and isinstance(runtime_for(Path("model.filed")), Filed)
    assert runtime_for(Path("model.onnx")) == OnnxRuntime()


def test_the_longest_suffix_that_fits_decides() -> None:
    assert runtime_for(Path("model.aoti.pt2")) == AotInductor()
    assert runtime_for(Path("aoti.pt2")).name == "torch.export"
    fxprune.register_runtime(replace(Filed(), suffix=".my.aoti.pt2"))
    assert runtime_for(Path("model.my.aoti.pt2")).name == "filed"


def test_the_built_in_names_are_typed() -> None:
    assert [runtime.name for runtime in map(runtime_of, get_args(BackendName))] == list(get_args(BackendName))


def test_errors_list_what_is_registered(tmp_path: Path) -> None:
    fxprune.register_runtime(Filed())
    listed = f"backend: expected one of {', '.join(get_args(BackendName))}, filed, got 'tvm'"
    with pytest.raises(fxprune.BudgetError, match=listed):
        fxprune.Budget(latency=0.5, backend="tvm")
    with pytest.raises(fxprune.BudgetError, match=listed):
        fxprune.bench([nn.Linear(4, 2)], torch.ones(1, 4), backends=("tvm",))
    with pytest.raises(fxprune.FxpruneError, match=r"expected a batch size and one of eager, .*, filed, got none"):
        fxprune.bench([nn.Linear(4, 2)], torch.ones(1, 4), backends=())
    with pytest.raises(fxprune.ExportError, match=r"ends in one of \.onnx \(ONNX\), .*, \.filed \(a file\)$"):
        fxprune.export(nn.Linear(4, 2), tmp_path / "model.bin", torch.ones(2, 4))

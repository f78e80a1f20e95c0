"""Runtimes at work: each built-in one, and one of a user's own through bench, a budget and export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.data.calls import tensors_of
from fxprune.latency.search import LatencySearch
from fxprune.latency.table import Table
from fxprune.runtimes import Eager, OnnxRuntime, from_file, onnx, registry
from fxprune.runtimes.registry import BackendName, runtime_of
from fxprune.runtimes.running import ready
from fxprune.runtimes.setting import Setting
from tests.support.marks import but_slow

BUILT_IN = get_args(BackendName)
#: What has to be there for some of them.
PACKAGES = {
    "openvino": ("openvino",),
    "executorch": ("executorch",),
    "ncnn": ("ncnn", "pnnx"),
    "litert": ("litert_torch",),
}


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(registry, "_RUNTIMES", {name: runtime_of(name) for name in BUILT_IN})


class Two(nn.Module):
    """Takes an image, and a scale by name; reads nothing of a third argument."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor, scale: Tensor | None = None, unused: Tensor | None = None) -> dict[str, Tensor]:
        hidden = self.conv(x).relu().mean((2, 3))
        return {"raw": hidden, "out": self.out(hidden if scale is None else hidden * scale)}


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 5)
    ).eval()


IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Own:
    """Exported programs under a name and a suffix of their own; notes what it is asked."""

    name: str = "own"
    fuses: bool = True
    devices: tuple[str, ...] = ("cpu",)
    peak_on: tuple[str, ...] = ()
    suffix: str = ".own"
    format: str = "my own"
    spoil: Callable[[Any], Any] | None = None
    asked: tuple[list[str], ...] = ([],)

    def write(self, program: Any, path: Path) -> None:
        self.asked[0].append("write")
        torch.export.save(program.exported, path)

    def load(self, path: Path, program: Any) -> Any:
        self.asked[0].append("load")
        module = torch.export.load(path).module()
        return module if self.spoil is None else lambda *args, **kwargs: self.spoil(module(*args, **kwargs))

    def runner(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], setting: Setting) -> Any:
        self.asked[0].append(f"run {setting.batch_size}")
        return from_file(self, model, args, kwargs)


def _own(**changes: Any) -> Own:
    made = replace(Own(), asked=([],), **changes)
    fxprune.register_runtime(made)
    return made


# -- the built-in ones ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", but_slow(BUILT_IN, quick=("eager",), every=3))
def test_each_gives_what_the_model_gives(name: str) -> None:
    import torch._inductor.config

    for package in PACKAGES.get(name, ()):
        pytest.importorskip(package)
    model, x, scale = Two().eval(), IMAGES[:1], torch.rand(1, 8)  # a batch of one stays one
    with torch._inductor.config.patch(compile_threads=1):  # starting workers takes longer than the work
        run = ready(model, (x,), {"scale": scale, "unused": torch.ones(3)}, Setting.of("cpu", 1, name, 1))
    with torch.inference_mode():
        expected, got = model(x, scale), run()
    arrays = got if name in ("onnxruntime", "openvino", "ncnn", "litert") else tensors_of(got)
    for want, have in zip(expected.values(), map(torch.as_tensor, arrays), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5)


def test_bench_runs_whatever_writes_a_file() -> None:
    found = fxprune.bench([_network()], IMAGES, backends=("torch.export",), repeats=1, seconds=0.0)
    assert not found.failed and found.rows[0].ms > 0
    assert found.rows[0].peak_bytes >= 4 * 16 * 6 * 6  # its operators are seen one by one


@pytest.mark.slow
def test_bench_writes_onnx_as_export_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "INLINE_LIMIT", 0)  # weights in a second file, for both
    model = _network()
    found = fxprune.bench([model], IMAGES, batch_sizes=(1, 3), backends=("onnxruntime",), repeats=1, seconds=0.0)
    assert [row.batch_size for row in found.rows] == [1, 3] and not found.failed
    assert fxprune.export(model, tmp_path / "model.onnx", IMAGES).beside


@pytest.mark.slow
def test_bench_says_what_onnx_does_not_take() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.i0e(x)

    found = fxprune.bench(
        {"odd": Odd(), "plain": _network()}, IMAGES, backends=("onnxruntime",), repeats=1, seconds=0.0
    )
    assert [row.model for row in found.rows] == ["plain"]
    assert found.failed[0].startswith("odd: onnxruntime, batch 1, cpu")
    assert "torch.onnx cannot write the model" in found.failed[0] and "i0e" in found.failed[0]


def test_what_failed_is_a_line_each() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(4, 192)[:, :2] if x.sum() > 0 else x

    models = {"fixed": Fixed(), "plain": _network()}
    found = fxprune.bench(models, IMAGES, backends=("torch.export",), repeats=1, seconds=0.0)
    assert found.failed[0].startswith("fixed: torch.export, batch 1, cpu") and "\n" not in found.failed[0]


@pytest.mark.slow
def test_numpy_has_no_bfloat16() -> None:
    class Widened(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x.float()

    x = torch.ones(2, 4, dtype=torch.bfloat16)
    with pytest.raises(fxprune.FxpruneError, match="no bfloat16: use a copy"):
        ready(Widened(), (x,), {}, Setting.of("cpu", 2, "onnxruntime", 1))


@pytest.mark.slow
def test_options_of_a_runtime_are_its_fields(tmp_path: Path) -> None:
    fxprune.register_runtime(replace(OnnxRuntime(), name="opset 20", suffix="", opset=20))
    found = fxprune.bench([_network()], IMAGES, backends=("opset 20",), repeats=1, seconds=0.0)
    assert found.rows[0].backend == "opset 20" and not found.failed
    assert fxprune.export(_network(), tmp_path / "model.onnx", IMAGES, opset=20).opset == 20


# -- one of one's own ----------------------------------------------------------------------------------------


def test_through_bench() -> None:
    own, model = _own(), _network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = fxprune.bench([model], IMAGES, batch_sizes=(2,), backends=("eager", "own"), repeats=1, seconds=0.0)
    assert own.asked[0] == ["run 2", "write", "load"] and not found.failed
    assert [row.backend for row in found.rows] == ["eager", "own"]
    assert found.rows[0].peak_bytes is not None and found.rows[1].peak_bytes is None  # as each says of itself
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_through_a_budget(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Light(Own):
        def runner(self, model: nn.Module, args: Any, kwargs: Any, setting: Setting) -> Any:
            self.asked[0].append(f"run {setting.batch_size}")
            return lambda: model(*args, **kwargs)

    own, model = Light(asked=([],)), _network()
    fxprune.register_runtime(own)
    budget = fxprune.Budget(params=0.6, latency_ms=1e6, batch_size=3, backend="own")
    pruned = fxprune.compile(model, [IMAGES], budget, method="l1", progress=False)
    found = fxprune.report(pruned)
    assert found.latency.backend == "own" and found.latency.met and found.params[1] <= 0.6 * found.params[0]
    assert own.asked[0].count("run 3") >= 3  # the original, those in between and the one that came out
    fxprune.save(pruned, tmp_path / "saved")
    registry._RUNTIMES.pop("own")  # another process need not know it to read what was measured
    assert fxprune.report(fxprune.load(tmp_path / "saved", model)).latency == found.latency


def test_through_export(tmp_path: Path) -> None:
    own, model = _own(), _network()
    found = fxprune.export(model, tmp_path / "model.own", IMAGES)
    assert own.asked[0] == ["write", "load"] and (found.format, found.max_error) == ("my own", 0.0)
    assert found.opset is None and [shapes[0][0] for shapes in found.compared] == [4, 5, 1]
    assert torch.equal(torch.export.load(found.path).module()(IMAGES), model(IMAGES))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda y: y + 1, r"model\.own, run by own, differs from the model: output 'output'"),
        (lambda y: (y, y), "run by own, gives 2 outputs, the model 1"),
        (lambda y: y.nothing, "run by own, fails for input .*AttributeError"),
    ],
)
def test_export_does_not_believe_it(spoil: Any, message: str, tmp_path: Path) -> None:
    _own(spoil=spoil)
    with pytest.raises(fxprune.ExportError, match=message):
        fxprune.export(_network(), tmp_path / "model.own", IMAGES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [lambda path: None, lambda path: path.mkdir()])
def test_export_does_not_believe_that_there_is_a_file(write: Any, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Silent(Own):
        def write(self, program: Any, path: Path) -> None:
            write(path)

        def load(self, path: Path, program: Any) -> Any:
            return program.module

    fxprune.register_runtime(Silent())
    with pytest.raises(fxprune.ExportError, match=r"own cannot write the model: its write\(\) left no file model\.own"):
        fxprune.export(_network(), tmp_path / "model.own", IMAGES)
    assert list(tmp_path.iterdir()) == []


def test_its_errors_are_told_with_its_name(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Failing(Own):
        def write(self, program: Any, path: Path) -> None:
            raise OSError("the vendor's tool is not here")

    fxprune.register_runtime(Failing())
    with pytest.raises(fxprune.ExportError, match="own cannot write the model: OSError: the vendor's tool is not here"):
        fxprune.export(_network(), tmp_path / "model.own", IMAGES)
    found = fxprune.bench([_network()], IMAGES, backends=("own", "eager"), repeats=1, seconds=0.0)
    assert [row.backend for row in found.rows] == ["eager"]
    assert "own does not take Sequential: OSError: the vendor's tool is not here" in found.failed[0]
    with pytest.raises(fxprune.ExportError, match=r"only an \.onnx file has an opset, got model\.own"):
        fxprune.export(_network(), tmp_path / "model.own", IMAGES, opset=20)


def test_a_device_that_it_does_not_run_on_is_refused() -> None:
    fxprune.register_runtime(replace(Eager(), name="far", devices=("cuda", "xpu")))
    with pytest.raises(fxprune.FxpruneError, match="far runs on cuda and xpu, got 'cpu'"):
        ready(_network(), (IMAGES,), {}, Setting.of("cpu", 4, "far", 1))


@pytest.mark.parametrize("fuses", [False, True])
def test_the_cost_table_asks_whether_it_fuses(fuses: bool) -> None:
    _own(fuses=fuses)

    class Times:
        setting = Setting.of("cpu", 4, "own", 1)

    coupling = fxprune.couple(fxprune.capture(_network(), (IMAGES,)))
    table = Table(lambda operation, widths: 1.0)
    search = LatencySearch(Times(), fxprune.Budget(latency_ms=1.0, backend="own"), table)
    steps = search.bound(coupling).model.layout.steps
    assert all(step.operation.contracts for step in steps) == fuses and len(steps) >= 3

"""The chain to production: compiled, exported, packaged, quantized; every file gives what the model gives."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxprune
from fxprune.contrib import demo
from fxprune.deployment.comparison import difference
from fxprune.runtimes import onnx as onnx_files
from fxprune.runtimes.sizes import other_sizes
from tests.compiler.test_islands import Detector
from tests.models.small import Residual
from tests.support.weights import fingerprint, randomise

Call = tuple[tuple[Any, ...], dict[str, Tensor]]
MODELS = ("cnn", "vit", "bert")


def _images(batch: int, size: int = 8) -> Call:
    return (torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch)),), {}


def _texts(batch: int, length: int = 10) -> Call:
    generator = torch.Generator().manual_seed(batch)
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[-1, length // 2 :] = 0
    return (), {"input_ids": torch.randint(0, 40, (batch, length), generator=generator), "attention_mask": mask}


def _model(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "cnn":
        return Residual()
    if name == "vit":
        from torchvision.models import VisionTransformer

        return VisionTransformer(
            image_size=16, patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
        )
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=16,
        )
    )  # fmt: skip


def _call(name: str, batch: int, length: int = 10) -> Call:
    return _texts(batch, length) if name == "bert" else _images(batch, 16 if name == "vit" else 8)


_PRUNED: dict[str, nn.Module] = {}


def _pruned(name: str) -> nn.Module:
    """Returns a model without a third of its parameters, compiled once."""
    if name not in _PRUNED:
        args, kwargs = _call(name, 4)
        model = randomise(_model(name), 0, args, kwargs).eval()
        data = [kwargs or args[0]]
        _PRUNED[name] = fxprune.compile(model, data, 0.67, method="l2", recover=None, progress=False)
        assert fxprune.report(_PRUNED[name]).verified
    return _PRUNED[name]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], fxprune.Exported]:
    """Exports a pruned model once for each suffix, alone in a directory."""
    done: dict[tuple[str, str], fxprune.Exported] = {}

    def once(name: str, suffix: str) -> fxprune.Exported:
        if (name, suffix) not in done:
            folder = tmp_path_factory.mktemp(name)
            done[name, suffix] = fxprune.export(_pruned(name), folder / f"model{suffix}")
            assert [path.name for path in folder.iterdir()] == [f"model{suffix}"]
        return done[name, suffix]

    return once


def _outputs(model: Any, call: Call) -> list[Tensor]:
    with torch.no_grad():
        return pytree.tree_leaves(model(*call[0], **call[1]))


def _equal(model: Any, file: Any, call: Call) -> None:
    expected, got = _outputs(model, call), _outputs(file, call)
    assert len(expected) == len(got) == 1
    torch.testing.assert_close(got[0], expected[0], rtol=1e-4, atol=1e-4 * float(expected[0].abs().max()))


def _session(path: Path) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*args: Tensor, **kwargs: Tensor) -> list[Tensor]:
        names = [entry.name for entry in session.get_inputs()]
        given = kwargs or dict(zip(names, args, strict=True))
        arrays = session.run(None, {name: given[name].numpy() for name in names})
        return [torch.from_numpy(array) for array in arrays]

    return run


# -- every step, on every kind of model ----------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_torch_compile_takes_the_whole_graph(name: str) -> None:
    import torch._inductor.config

    torch._dynamo.reset()
    pruned = _pruned(name)
    # code is generated for one of them: it takes a minute each, most of it in the C++ compiler
    backend = "inductor" if name == "cnn" else "aot_eager"
    compiled = torch.compile(pruned, fullgraph=True, backend=backend)
    with torch._inductor.config.patch(compile_threads=1):  # starting workers takes longer than the work
        _equal(pruned, compiled, _call(name, 3))


@pytest.mark.parametrize("name", MODELS)
def test_onnx(name: str, exported: Any) -> None:
    found = exported(name, ".onnx")
    assert found.format == "ONNX" and found.max_error <= 1e-4 and found.opset >= 18
    assert found.bytes == found.path.stat().st_size and not found.beside
    assert [shapes[0][0] for shapes in found.compared] == [4, 5, 1]
    for batch, length in ((2, 10), (7, 13), (1, 5)):
        _equal(_pruned(name), _session(found.path), _call(name, batch, length))


@pytest.mark.parametrize("name", MODELS)
def test_pt2(name: str, exported: Any) -> None:
    found = exported(name, ".pt2")
    assert found.format == "torch.export" and found.max_error == 0 and found.opset is None
    loaded = torch.export.load(found.path).module()
    for batch, length in ((2, 10), (7, 13), (1, 5)):
        _equal(_pruned(name), loaded, _call(name, batch, length))


def test_aoti(exported: Any) -> None:
    with torch._inductor.config.patch(compile_threads=1):
        found = exported("cnn", ".aoti.pt2")
    assert found.format == "AOTInductor package" and found.max_error <= 1e-4
    loaded = torch._inductor.aoti_load_package(str(found.path))
    for batch in (4, 7, 1):
        _equal(_pruned("cnn"), loaded, _call("cnn", batch))


@pytest.mark.parametrize("name", MODELS)
def test_int8(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    pruned = _pruned(name)
    before = fingerprint(pruned)
    calls = [_call(name, 8), _call(name, 9)]
    int8 = fxprune.quantize(pruned, [kwargs or args[0] for args, kwargs in calls])
    assert fingerprint(pruned) == before
    assert {p.dtype for p in int8.state_dict().values()} >= {torch.int8}
    assert fxprune.report(int8) is fxprune.report(pruned)
    call = _call(name, 6)
    (expected,), (got,) = _outputs(pruned, call), _outputs(int8.eval(), call)
    assert 0 < difference(expected, got) < 0.1
    assert fxprune.export(int8, tmp_path / "int8.pt2").max_error == 0
    if name == "cnn":  # rounding may fall the other way between two integers
        found = fxprune.export(int8, tmp_path / "int8.onnx", tolerance=0.05)
        assert difference(got, _outputs(_session(found.path), call)[0]) < 0.05


# -- what the files hold -------------------------------------------------------------------------------------


def test_the_record_says_what_goes_in_and_comes_out(exported: Any) -> None:
    found = exported("bert", ".pt2")
    assert [str(value) for value in (*found.inputs, *found.outputs)] == [
        "input_ids int64 [batch, length]",
        "attention_mask int64 [batch, length]",
        "logits float32 [batch, 2]",
    ]
    assert found.compared == (((4, 10), (4, 10)), ((5, 11), (5, 11)), ((1, 10), (1, 10)))
    assert "model.pt2: torch.export" in str(found) and "relative error 0.0e+00" in str(found)


def test_onnx_names_and_free_sizes(exported: Any) -> None:
    import onnx

    graph = onnx.load(exported("bert", ".onnx").path).graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {"input_ids": ["batch", "length"], "attention_mask": ["batch", "length"], "logits": ["batch", 2]}


def test_a_file_needs_nothing_but_torch(exported: Any, tmp_path: Path) -> None:
    """The outputs of transformers have a class of their own; the file has a dict."""
    path = exported("bert", ".pt2").path
    call = _texts(3)
    torch.save((call[1], _outputs(_pruned("bert"), call)[0]), tmp_path / "expected.pt")
    script = """
import sys, torch
inputs, expected = torch.load("expected.pt")
found = torch.export.load("model.pt2").module()(**inputs)
assert type(found) is dict and "transformers" not in sys.modules and "fxprune" not in sys.modules
torch.testing.assert_close(found["logits"], expected)
print("same")
"""
    shutil.copy(path, tmp_path)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "same", done.stderr


def test_a_file_holds_none_of_the_users_data(tmp_path: Path) -> None:
    fxprune.export(nn.Linear(4, 3), tmp_path / "model.pt2", torch.full((2, 4), 7.0))
    args, _ = torch.export.load(tmp_path / "model.pt2").example_inputs
    assert torch.equal(args[0], torch.zeros(2, 4))


def test_large_weights_lie_beside_an_onnx_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_files, "INLINE_LIMIT", 0)
    model, x = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 3)), torch.randn(2, 64)
    for _ in range(2):  # the second takes the place of the first
        found = fxprune.export(model, tmp_path / "model.onnx", x)
        assert [path.name for path in found.beside] == ["model.onnx.data"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
        assert found.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
        assert found.beside[0].stat().st_size >= 4 * 64 * 64
        _equal(model, _session(found.path), ((torch.randn(5, 64),), {}))


def test_small_weights_leave_no_others_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Linear(64, 3), torch.randn(2, 64)
    with monkeypatch.context() as patch:
        patch.setattr(onnx_files, "INLINE_LIMIT", 0)
        fxprune.export(model, tmp_path / "model.onnx", x)
    assert fxprune.export(model, tmp_path / "model.onnx", x).beside == ()
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_table_of_one_row(tmp_path: Path) -> None:
    class Typed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.types, self.out = nn.Embedding(1, 16), nn.Linear(16, 3)

        def forward(self, types: Tensor) -> Tensor:
            return self.out(self.types(types))

    kinds = torch.zeros(2, 5, dtype=torch.long)
    pruned = fxprune.compile(Typed(), [kinds], 0.7, method="l1", recover=None, progress=False)
    assert fxprune.export(pruned, tmp_path / "model.pt2").max_error == 0.0


class _Outputs(nn.Module):
    """Gives what the function makes of a linear layer's output."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.linear, self.make = nn.Linear(4, 4), make

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Any:
        y = self.linear(x)
        return self.make(x, y if scale is None else y * scale)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_outputs_of_every_form(suffix: str, tmp_path: Path) -> None:
    def make(x: Tensor, y: Tensor) -> Any:
        return {"linear": y, "x": [x, y.argmax(1)], "same": (y, y > 0), "none": None}

    found = fxprune.export(_Outputs(make), tmp_path / f"model{suffix}", torch.randn(3, 4))
    assert [value.name for value in found.outputs] == [
        "output_linear", "x_0", "x_1", "same_0", "same_1"
    ]  # fmt: skip
    assert [value.dtype for value in found.outputs][2:] == ["int64", "float32", "bool"]


def test_arguments_are_passed_as_in_the_example(tmp_path: Path) -> None:
    model, x, scale = _Outputs(lambda x, y: y), torch.randn(3, 4), torch.rand(4)
    for number, (example, call) in enumerate([
        ((x, scale), ((x, scale), {})),
        ({"x": x, "scale": scale}, ((), {"scale": scale, "x": x})),
        (((x,), {"scale": scale}), ((x,), {"scale": scale})),
    ]):  # fmt: skip
        path = tmp_path / f"{number}.pt2"
        assert [value.name for value in fxprune.export(model, path, example).inputs] == ["x", "scale"]
        _equal(model, torch.export.load(path).module(), call)


def test_a_batch_may_be_fixed(tmp_path: Path) -> None:
    fixed = _Outputs(lambda x, y: y.view(3, 2, 2))
    with pytest.raises(fxprune.ExportError, match=r"x of \[3, 4\] only.*dynamic_batch=False"):
        fxprune.export(fixed, tmp_path / "model.pt2", torch.randn(3, 4))
    found = fxprune.export(fixed, tmp_path / "model.pt2", torch.randn(3, 4), dynamic_batch=False)
    assert found.inputs[0].shape == (3, 4) and found.compared == (((3, 4),),)
    one = fxprune.export(nn.Linear(4, 2), tmp_path / "one.pt2", torch.randn(1, 4), dynamic_batch=False)
    assert one.inputs[0].shape == (1, 4)


def test_shapes_may_be_chosen(tmp_path: Path) -> None:
    dims = {"input": {2: torch.export.Dim("height", min=2, max=4)}}
    found = fxprune.export(nn.PixelShuffle(2), tmp_path / "model.pt2", torch.randn(2, 4, 4, 3), dynamic_shapes=dims)
    assert found.inputs[0].shape == (2, 4, "input_2", 3)
    assert found.outputs[0].shape == (2, 1, "2*input_2", 6)
    assert found.compared == (((2, 4, 4, 3),), ((2, 4, 3, 3),))  # 5 is out of bounds


# -- the model stays, and so do files ------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_the_model_stays_as_it_is_and_torchscript_is_not_used(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("TorchScript")

    for name in ("trace", "script", "trace_module", "freeze", "save"):
        monkeypatch.setattr(torch.jit, name, refuse)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(5))
    model(torch.randn(4, 3, 8, 8))
    model[0].eval()
    before, flags = fingerprint(model), [m.training for m in model.modules()]
    state = torch.random.get_rng_state()
    found = fxprune.export(model, tmp_path / f"model{suffix}", torch.randn(4, 3, 8, 8, generator=torch.Generator()))
    assert fingerprint(model) == before and [m.training for m in model.modules()] == flags
    assert torch.equal(torch.random.get_rng_state(), state)
    assert found.max_error <= 1e-4  # of the model in evaluation mode


@contextmanager
def _spoiled(program: Any) -> Iterator[Any]:
    """Has a program hold other weights than the module for a while."""
    try:
        for value in program.state_dict.values():
            value.data.add_(0.01)
        yield program
    finally:
        for value in program.state_dict.values():
            value.data.sub_(0.01)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("existing", [False, True])
def test_a_file_that_differs_is_not_left(
    suffix: str, existing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, export = torch.export.save, torch.onnx.export

    def wrong_save(program: Any, path: Path) -> None:
        with _spoiled(program):
            save(program, path)

    class Wrong:
        """What the exporter gives, its weights already written."""

        def __init__(self, program: Any, **how: Any) -> None:
            with _spoiled(program):
                self.program = export(program, **how)
                self.proto, self.model = self.program.model_proto, self.program.model

        def rename_axes(self, names: Any) -> None:
            pass

        def save(self, path: Path, external_data: bool) -> None:
            path.write_bytes(self.proto.SerializeToString())

    monkeypatch.setattr(torch.export, "save", wrong_save)
    monkeypatch.setattr(torch.onnx, "export", Wrong)
    path = tmp_path / f"model{suffix}"
    if existing:
        path.write_bytes(b"before")
    with pytest.raises(fxprune.ExportError, match=r"output 'output'.* by \d.*tolerance 1e-04, for input \[2, 4\]"):
        fxprune.export(nn.Linear(4, 3), path, torch.randn(2, 4))
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([b"before"] if existing else [])
    assert fxprune.export(nn.Linear(4, 3), path, torch.randn(2, 4), tolerance=10.0).max_error > 1e-4


def test_an_interruption_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(program: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.export, "save", stop)
    (tmp_path / "model.pt2").write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt):
        fxprune.export(nn.Linear(4, 3), tmp_path / "model.pt2", torch.randn(2, 4))
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"before"]


# -- errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.bin", r"model\.bin: expected a file name that ends in one of \.onnx .*, \.pt2 .*, \.aoti\.pt2"),
        (".onnx", "expected a file name that ends in"),
        ("folder.onnx", "expected a file name, got a directory"),
        ("missing/model.onnx", "missing: there is no such directory"),
    ],
)
def test_unusable_paths(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(fxprune.ExportError, match=message):
        fxprune.export(nn.Linear(4, 3), tmp_path / name, torch.randn(2, 4))
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"]


@pytest.mark.parametrize(
    ("model", "example", "options", "message"),
    [
        ("model", None, {}, "expected a torch.nn.Module, got str"),
        (nn.Linear(4, 3), None, {}, "Linear was not compiled by fxprune.*pass example="),
        (nn.Linear(4, 3), [1], {}, "example: expected a tensor, a tuple .* got list"),
        (nn.Linear(4, 3, device="meta"), torch.ones(2, 4), {}, "meta device"),
        (nn.Linear(4, 3), torch.ones(2, 4), {"opset": 18}, "only an .onnx file has an opset"),
        (nn.Linear(4, 3), torch.ones(2, 4), {"part": "body"}, "part='body': the model has no such submodule"),
        (_Outputs(lambda x, y: y * float("nan")), torch.ones(2, 4), {}, "nothing finite here: pass an exam"),
    ],
)  # fmt: skip
def test_unusable_arguments(model: Any, example: Any, options: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(fxprune.ExportError, match=message):
        fxprune.export(model, tmp_path / "model.pt2", example, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(fxprune.MissingExtraError, match=rf"needs {package}.*pip install 'fxprune\[export\]'"):
        fxprune.export(nn.Linear(4, 3), tmp_path / "model.onnx", torch.randn(2, 4))
    assert list(tmp_path.iterdir()) == []


def test_an_operator_without_an_onnx_form_is_named(tmp_path: Path) -> None:
    model = _Outputs(lambda x, y: torch.special.i0e(y))
    with pytest.raises(fxprune.ExportError, match=r"torch\.onnx cannot write the model: .*i0e"):
        fxprune.export(model, tmp_path / "model.onnx", torch.randn(2, 4))
    assert list(tmp_path.iterdir()) == []


def test_without_a_compiler_there_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(fxprune.ExportError, match=r"needs a C\+\+ compiler .*install g\+\+ or clang"):
        fxprune.export(nn.Linear(4, 3), tmp_path / "model.aoti.pt2", torch.randn(2, 4))
    assert list(tmp_path.iterdir()) == []


# -- models that were compiled in parts ----------------------------------------------------------------------


def test_parts_of_a_detector(tmp_path: Path) -> None:
    images = [list(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(n))) for n in range(2)]
    model = randomise(Detector(), 0, (images[0],)).eval()
    pruned = fxprune.compile(
        model, [(one,) for one in images], 0.5, forward_args=tuple, method="l2", recover=None, progress=False
    )
    with pytest.raises(fxprune.ExportError, match=r"compiled in parts.*part='body'"):
        fxprune.export(pruned, tmp_path / "model.pt2")
    with pytest.raises(fxprune.CaptureError, match="cannot be exported whole, only its parts: pass part='body'"):
        fxprune.export(pruned, tmp_path / "model.pt2", (images[0],), dynamic_batch=False)
    x = torch.randn(3, 3, 32, 32)
    for example in (None, (images[0],)):
        found = fxprune.export(pruned, tmp_path / "body.pt2", example, part="body")
        assert found.inputs[0].shape[:2] == ("batch", 3)
        _equal(pruned.body, torch.export.load(found.path).module(), ((x,), {}))
    with pytest.raises(fxprune.ExportError, match=r"part='body\.0': no call of it is known"):
        fxprune.export(pruned, tmp_path / "model.pt2", part="body.0")


# -- int8 ----------------------------------------------------------------------------------------------------


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


def test_quantize_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(fxprune.ExportError, match=r"quantize: expected a torch\.nn.Module, got str"):
        fxprune.quantize("model", [torch.randn(2, 4)])
    monkeypatch.setitem(sys.modules, "torchao.quantization.pt2e.quantize_pt2e", None)
    with pytest.raises(fxprune.MissingExtraError, match=r"torchao.*pip install 'fxprune\[quantize\]'"):
        fxprune.quantize(nn.Linear(4, 3), [torch.randn(2, 4)])


def test_quantize_says_if_there_is_nothing_to_do() -> None:
    pytest.importorskip("torchao")
    with pytest.raises(fxprune.ExportError, match="found nothing to quantize"):
        fxprune.quantize(nn.LayerNorm(4), [torch.randn(2, 4)])


# -- the pieces ----------------------------------------------------------------------------------------------


def test_difference() -> None:
    nan, inf = float("nan"), float("inf")
    one = torch.tensor([1.0, -4.0])
    assert difference(one, torch.tensor([1.0, -3.0])) == 0.25
    assert difference(one * 1e-9, one * 1.5e-9) == pytest.approx(0.5)  # no absolute tolerance
    assert difference(torch.zeros(2), torch.full((2,), 1e-3)) == pytest.approx(1e-3)
    assert difference(torch.tensor([-inf, 2.0]), torch.tensor([-inf, 2.0])) == 0
    assert difference(torch.tensor([-inf, 2.0]), torch.tensor([inf, 2.0])) == inf
    assert difference(torch.tensor([nan, 2.0]), torch.tensor([1.0, 2.0])) == inf
    assert difference(torch.tensor([3]), torch.tensor([3])) == 0
    assert difference(torch.tensor([3]), torch.tensor([4])) == inf
    assert difference(one, one.double()) == inf and difference(one, one[:1]) == inf
    assert difference(torch.tensor([nan]), torch.tensor([nan])) != 0
    assert difference(torch.tensor([1j]), torch.tensor([2j])) == 1


def test_other_sizes_stay_within_bounds_and_change_together() -> None:
    class Bounds:
        def __init__(self, lower: int, upper: int) -> None:
            self.lower, self.upper = lower, upper

    bounds = {"a": Bounds(2, 9), "b": Bounds(2, 8), "c": Bounds(2, 2), "d": Bounds(3, 100)}
    assert list(other_sizes({"a": 8, "b": 8, "c": 2, "d": 3}, bounds)) == [{"a": 7, "b": 7, "c": 2, "d": 4}]
    assert list(other_sizes({"c": 2}, bounds)) == [] and list(other_sizes({}, {})) == []

"""Exporting: every file gives what the model gives, or is not left behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.models.libraries import swin
from tests.models.parts import Detector
from tests.support.exports import assert_equal, outputs_of, pruned_of, texts
from tests.support.marks import but_slow, sampled
from tests.support.weights import fingerprint, randomise

# -- what the files hold -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_record_says_what_goes_in_and_comes_out(exported: Any) -> None:
    found = exported("bert", ".pt2")
    assert [str(value) for value in (*found.inputs, *found.outputs)] == [
        "input_ids int64 [batch, length]",
        "attention_mask int64 [batch, length]",
        "logits float32 [batch, 2]",
    ]
    assert found.compared == (((4, 10), (4, 10)), ((5, 11), (5, 11)), ((1, 10), (1, 10)))
    assert "model.pt2: torch.export" in str(found) and "relative error 0.0e+00" in str(found)


@pytest.mark.slow
def test_a_file_needs_nothing_but_torch(exported: Any, tmp_path: Path) -> None:
    """The outputs of transformers have a class of their own; the file has a dict."""
    path = exported("bert", ".pt2").path
    call = texts(3)
    torch.save((call[1], outputs_of(pruned_of("bert"), call)[0]), tmp_path / "expected.pt")
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


class _Dropped(nn.Module):
    """Gives its input back in evaluation mode, as stochastic depth does."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand(len(x), 1) if self.training else x


@pytest.mark.parametrize("suffix", but_slow([".pt2", ".onnx"], quick=(".pt2",)))
def test_what_evaluation_mode_hides_leaves_nothing_in_a_file(suffix: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), _Dropped(), nn.Linear(3, 2))
    found = fxprune.export(model, tmp_path / f"model{suffix}", torch.randn(2, 4))
    if suffix == ".pt2":
        assert _namespaces(found.path) == {"aten"}


def _namespaces(path: Path) -> set[str]:
    """Returns those of the operators in a file, as a process that knows no others reads them."""
    script = (
        "import sys, torch\n"
        f"program = torch.export.load({str(path)!r})\n"
        "assert 'fxprune' not in sys.modules\n"
        "print(*{getattr(node.target, 'namespace', 'aten') for node in program.graph.nodes if node.op == 'call_function'})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=path.parent)
    assert not done.returncode, done.stderr
    return set(done.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize("pruned", sampled([True, False], 2))
def test_files_of_a_transformer_with_stochastic_depth(pruned: bool, tmp_path: Path) -> None:
    model, x = swin(stochastic_depth_prob=0.2).eval(), torch.randn(2, 3, 32, 32)
    if pruned:
        model = fxprune.compile(model, [x], 0.7, method="l2", recover=None, progress=False)
    assert fxprune.export(model, tmp_path / "model.onnx", x).max_error <= 1e-4
    assert _namespaces(fxprune.export(model, tmp_path / "model.pt2", x).path) == {"aten"}


def test_a_graph_of_a_capture_is_no_model_to_export(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), _Dropped(), nn.Linear(3, 2))
    graph = fxprune.capture(model, (torch.randn(2, 4),)).module
    with pytest.raises(fxprune.ExportError, match=r"calls fxprune\.mark.*export what was compiled"):
        fxprune.export(graph, tmp_path / "model.pt2", (torch.randn(2, 4),))
    assert list(tmp_path.iterdir()) == []


def test_a_file_holds_none_of_the_users_data(tmp_path: Path) -> None:
    fxprune.export(nn.Linear(4, 3), tmp_path / "model.pt2", torch.full((2, 4), 7.0))
    args, _ = torch.export.load(tmp_path / "model.pt2").example_inputs
    assert torch.equal(args[0], torch.zeros(2, 4))


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


@pytest.mark.parametrize("suffix", but_slow([".pt2", ".onnx"], quick=(".pt2",)))
def test_outputs_of_every_form(suffix: str, tmp_path: Path) -> None:
    def make(x: Tensor, y: Tensor) -> Any:
        return {"linear": y, "x": [x, y.argmax(1)], "same": (y, y > 0), "none": None}

    found = fxprune.export(_Outputs(make), tmp_path / f"model{suffix}", torch.randn(3, 4))
    assert [value.name for value in found.outputs] == ["output_linear", "x_0", "x_1", "same_0", "same_1"]
    assert [value.dtype for value in found.outputs][2:] == ["int64", "float32", "bool"]


def test_arguments_are_passed_as_in_the_example(tmp_path: Path) -> None:
    model, x, scale = _Outputs(lambda x, y: y), torch.randn(3, 4), torch.rand(4)
    for number, (example, call) in enumerate(
        [
            ((x, scale), ((x, scale), {})),
            ({"x": x, "scale": scale}, ((), {"scale": scale, "x": x})),
            (((x,), {"scale": scale}), ((x,), {"scale": scale})),
        ]
    ):
        path = tmp_path / f"{number}.pt2"
        assert [value.name for value in fxprune.export(model, path, example).inputs] == ["x", "scale"]
        assert_equal(model, torch.export.load(path).module(), call)


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


class _Halving(nn.Module):
    """Takes images of even height and width: it adds to an image what was made of its half."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 2, stride=2), nn.ConvTranspose2d(8, 3, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.down(x).relu())


@pytest.mark.parametrize("suffix", but_slow([".pt2", ".onnx"], quick=(".pt2",)))
def test_sizes_that_go_in_steps_stay_free(suffix: str, tmp_path: Path) -> None:
    pruned = fxprune.compile(_Halving(), [torch.randn(3, 3, 8, 8)], 0.7, method="l2", recover=None, progress=False)
    found = fxprune.export(pruned, tmp_path / f"model{suffix}")
    assert found.inputs[0].shape == ("batch", 3, "x_2", "x_3") and not found.note
    assert found.compared == (((3, 3, 8, 8),), ((4, 3, 10, 10),), ((1, 3, 8, 8),))
    assert "made for sizes where x.shape[2] == (2*(x.shape[2]//2)), x.shape[3] == (2*(x.shape[3]//2))" in str(found)


def test_sizes_of_a_dense_model_that_go_in_steps(tmp_path: Path) -> None:
    auto = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    found = fxprune.export(_Halving(), tmp_path / "a.pt2", torch.randn(3, 3, 8, 6), dynamic_shapes={"x": auto})
    assert found.compared[1] == ((4, 3, 10, 8),)


@pytest.mark.slow
def test_what_a_runtime_computes_otherwise_where_a_size_is_free_is_fixed_and_said(tmp_path: Path) -> None:
    """Means over windows that do not divide an image are other ones in ONNX."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Conv2d(8, 2, 1))
    pruned = fxprune.compile(model, [torch.randn(3, 3, 8, 8)], 0.7, method="l2", recover=None, progress=False)
    found = fxprune.export(pruned, tmp_path / "model.onnx")
    assert found.inputs[0].shape == ("batch", 3, 8, 8) and found.path.is_file()
    assert "differs from the model" in found.note and "What may help: dynamic_shapes=" in found.note
    assert "nothing was written" not in found.note


class _Refusing(nn.Module):
    """Refuses a batch, or a width, where it runs as Python, and not where it is traced."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and x.shape[self.dim] != 4:
            raise ValueError("only 4")
        return 2 * x


@pytest.mark.parametrize(("dim", "way"), [(0, "pass dynamic_batch=False"), (1, r"pass dynamic_shapes=.* 4 \* Dim")])
def test_what_helps_where_the_model_fails_at_other_sizes(dim: int, way: str, tmp_path: Path) -> None:
    free = {"x": {0: torch.export.Dim("batch"), 1: torch.export.Dim("width")}} if dim else None
    with pytest.raises(fxprune.ExportError, match=rf"the model fails there \(ValueError: only 4\): {way}"):
        fxprune.export(_Refusing(dim), tmp_path / "model.pt2", torch.randn(4, 4), dynamic_shapes=free)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_nothing_is_logged_of_sizes_that_come_and_go(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """After torch's exporter of ONNX has run, a program of an LSTM has sizes on its way that the file does not keep."""
    model, x = nn.LSTM(4, 6, bidirectional=True, batch_first=True), torch.randn(3, 5, 4)
    fxprune.export(model, tmp_path / "model.onnx", x)
    capfd.readouterr()
    fxprune.export(model, tmp_path / "model.pt2", x)
    captured = capfd.readouterr()
    assert captured.err == "" == captured.out


# -- the model stays, and so do files ------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", but_slow([".pt2", ".onnx"], quick=(".pt2",)))
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


@pytest.mark.parametrize("suffix", but_slow([".pt2", ".onnx"], quick=(".pt2",)))
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
)
def test_unusable_arguments(model: Any, example: Any, options: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(fxprune.ExportError, match=message):
        fxprune.export(model, tmp_path / "model.pt2", example, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", [None, "0"])
def test_an_example_that_the_model_does_not_take(part: str | None, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    pruned = fxprune.compile(model, [torch.randn(3, 4)], 0.7, method="l2", recover=None, progress=False)
    for module, example, words in [
        (model, torch.randn(3, 5), "the model fails on it: RuntimeError"),
        (model, (torch.randn(3, 4), 1), "the model fails on it: TypeError"),
        (pruned, torch.randn(3, 5), r"expected 4 in dimension 1, got 5"),
    ]:
        with pytest.raises(fxprune.ExportError, match=rf"example: .*{words}"):
            fxprune.export(module, tmp_path / "model.pt2", example, part=part)
    assert list(tmp_path.iterdir()) == []


class _Halved(nn.Module):
    """Computes in bfloat16 on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = self.linear(x)
        return y.float()


@pytest.mark.slow
def test_what_helps_where_onnxruntime_has_no_kernels(tmp_path: Path) -> None:
    with pytest.raises(fxprune.ExportError, match=r"does not take the file: .*bfloat16.*without its regions.*\.pt2"):
        fxprune.export(_Halved(), tmp_path / "model.onnx", torch.randn(2, 4))
    assert list(tmp_path.iterdir()) == []
    assert fxprune.export(_Halved(), tmp_path / "model.pt2", torch.randn(2, 4)).max_error == 0


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(fxprune.MissingExtraError, match=rf"needs {package}.*pip install 'fxprune\[export\]'"):
        fxprune.export(nn.Linear(4, 3), tmp_path / "model.onnx", torch.randn(2, 4))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_operator_without_an_onnx_form_is_named(tmp_path: Path) -> None:
    model = _Outputs(lambda x, y: torch.special.i0e(y))
    with pytest.raises(fxprune.ExportError, match=r"torch\.onnx cannot write the model: .*i0e"):
        fxprune.export(model, tmp_path / "model.onnx", torch.randn(2, 4))
    assert list(tmp_path.iterdir()) == []


# -- models that were compiled in parts ----------------------------------------------------------------------


@pytest.mark.slow
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
        assert_equal(pruned.body, torch.export.load(found.path).module(), ((x,), {}))
    with pytest.raises(fxprune.ExportError, match=r"part='body\.0': no call of it is known"):
        fxprune.export(pruned, tmp_path / "model.pt2", part="body.0")


def test_without_a_compiler_there_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(fxprune.ExportError, match=r"needs a C\+\+ compiler .*install g\+\+ or clang"):
        fxprune.export(nn.Linear(4, 3), tmp_path / "model.aoti.pt2", torch.randn(2, 4))
    assert list(tmp_path.iterdir()) == []


def test_widths_that_runtimes_are_slow_with_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 8, 3)).eval()
    x = torch.randn(2, 3, 8, 8)
    chosen: dict[str, Any] = {"method": "l2", "recover": None, "progress": False}
    for how, told in (({"ratios": 0.52}, "1 of 1 groups keep no multiple of 8 channels"), ({"budget": 0.5}, "")):
        pruned = fxprune.compile(model, [x], **chosen, **how)
        found = fxprune.export(pruned, tmp_path / "a.pt2", (x,))
        assert (
            told in found.widths and ("(31)" in str(found)) == bool(told) and found.to_dict()["widths"] == found.widths
        )

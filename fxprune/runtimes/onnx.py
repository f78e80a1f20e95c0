"""ONNX files, written by torch's exporter of exported programs and run by onnxruntime."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxprune._base.errors import ExportError, brief, raised_as
from fxprune._base.extras import need
from fxprune.data.calls import Call
from fxprune.runtimes.program import Program
from fxprune.runtimes.registry import Loaded, Run
from fxprune.runtimes.running import arrays_of, at_these_sizes, silent
from fxprune.runtimes.setting import Setting

#: An ONNX file may have 2 GB; a model with more bytes of weights than this gets a second file beside it.
INLINE_LIMIT = 1536 << 20

_ON_BFLOAT16 = (
    ". The model computes in bfloat16, for which onnxruntime has few kernels: compile it without its regions under "
    "torch.autocast, with its weights as .float(); or write a .pt2 file"
)

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True, slots=True)
class OnnxRuntime:
    """Runs a session of onnxruntime, which has its own memory and does not tell.

    Attributes:
        opset: of the files; by default the exporter's own.
    """

    name: str = "onnxruntime"
    fuses: bool = True
    devices: tuple[str, ...] = tuple(_PROVIDERS)
    peak_on: tuple[str, ...] = ()
    suffix: str = ".onnx"
    format: str = "ONNX"
    opset: int | None = None

    def write(self, program: Program, path: Path) -> int:
        """Writes a program as ONNX, in two files if it is large, and returns the opset.

        Raises:
            ExportError: an operator has no ONNX form.
            MissingExtraError: a package is not installed.
        """
        for package in ("onnx", "onnxscript", "onnxruntime"):
            need(package, "export", "an .onnx file")
        with raised_as(ExportError, "torch.onnx cannot write the model"):
            written: Any = torch.onnx.export(
                program.exported,
                dynamo=True,
                verbose=False,
                opset_version=self.opset,
                input_names=[value.name for value in program.inputs],
                output_names=[value.name for value in program.outputs],
            )
            written.rename_axes({str(symbol): name for symbol, name in program.names.items()})
            written.save(path, external_data=_large(program))
        return int(written.model.opset_imports[""])

    def quantize(
        self, source: Path, target: Path, program: Program, calls: Iterable[Call], settings: Mapping[str, Any]
    ) -> None:
        """Writes a file anew in int8, by onnxruntime's static quantizer: weights by output channel, activations uint8.

        Args:
            source: what `write` wrote.
            target: the new file.
            program: of which it was written.
            calls: to calibrate on.
            settings: for ``onnxruntime.quantization.quantize_static``, beside or instead of those here.

        Raises:
            ExportError: it does not take the file, or finds nothing in it.
            MissingExtraError: a package is not installed.
        """
        tools = need("onnxruntime.quantization", "export", "an .onnx file in int8")
        onnx = need("onnx", "export", "an .onnx file in int8")
        shapes = need("onnxruntime.quantization.shape_inference", "export", "an .onnx file in int8")
        chosen = {
            "quant_format": tools.QuantFormat.QDQ,
            "per_channel": True,
            "activation_type": tools.QuantType.QUInt8,
            "weight_type": tools.QuantType.QInt8,
            "use_external_data_format": _large(program),
            **(_with_attention() if program.attends() else {}),
            **settings,
        }
        read = {entry.name for entry in onnx.load(source, load_external_data=False).graph.input}
        reader = _reader(tools.CalibrationDataReader, (arrays_of(program, call, read, "onnxruntime") for call in calls))
        prepared = source.with_name(f"prepared-{source.name}")
        with raised_as(ExportError, "onnxruntime cannot quantize the model"), silent("root"):
            shapes.quant_pre_process(
                str(source), str(prepared), skip_symbolic_shape=True, save_as_external_data=_large(program)
            )
            tools.quantize_static(str(prepared), str(target), reader, **chosen)
        if all(node.op_type != "QuantizeLinear" for node in onnx.load(target, load_external_data=False).graph.node):
            raise ExportError("onnxruntime found nothing to quantize in the model: no convolution, no linear layer")

    def load(self, path: Path, program: Program) -> Loaded:
        """Returns what runs a file on the CPU.

        Raises:
            ExportError: onnxruntime does not take the file.
            MissingExtraError: it is not installed.
        """
        session = _session(path, torch.device("cpu"), 0, program)
        return lambda *args, **kwargs: [
            torch.from_numpy(array) for array in session.run(None, _feeds(session, program, (args, kwargs)))
        ]

    def runner(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], setting: Setting) -> Run:
        """Returns a run of a session on the setting's device; on a GPU inputs and outputs stay there.

        Raises:
            ExportError: an operator has no ONNX form, or onnxruntime does not take the model.
            MissingExtraError: a package is not installed.
        """
        program, device = at_these_sizes(model, args, kwargs), torch.device(setting.device)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            self.write(program, path)
            session = _session(path, device, setting.threads, program)
        feeds = _feeds(session, program, program.call)
        return (lambda: session.run(None, feeds)) if device.type == "cpu" else _bound(session, feeds, device)


def _session(path: Path, device: torch.device, threads: int, program: Program) -> Any:
    """Returns a session of a program's file; 0 threads are as many as onnxruntime likes."""
    onnxruntime = need("onnxruntime", "export", "an .onnx file")
    provider = _PROVIDERS[device.type]
    if provider not in (known := onnxruntime.get_available_providers()):
        raise ExportError(f"this onnxruntime has no provider for {str(device)!r}, only {', '.join(known)}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    chosen = provider if device.type == "cpu" else (provider, {"device_id": device.index or 0})
    try:
        return onnxruntime.InferenceSession(path, options, providers=[chosen])
    except Exception as error:  # of classes that are not public
        advice = _ON_BFLOAT16 if torch.bfloat16 in program.dtypes() else ""
        raise ExportError(f"onnxruntime does not take the file: {brief(error)}{advice}") from error


def _feeds(session: Any, program: Program, call: Call) -> dict[str, Any]:
    """Returns a call's arrays by name: those that the session still reads."""
    return arrays_of(program, call, {entry.name for entry in session.get_inputs()}, "onnxruntime")


def _large(program: Program) -> bool:
    """Returns whether a program's weights do not fit into an ONNX file."""
    return sum(x.nbytes for x in program.exported.state_dict.values() if isinstance(x, Tensor)) > INLINE_LIMIT


def _with_attention() -> dict[str, Any]:
    """Returns settings that quantize what contractions read, and nothing else: a mask of -3e38, once added, leaves nothing of the scores."""
    kinds = ["Conv", "Gather", "Gemm", "MatMul"]
    return {"op_types_to_quantize": kinds, "extra_options": {"OpTypesToExcludeOutputQuantization": kinds}}


def _reader(base: Any, feeds: Iterator[Mapping[str, Any]]) -> Any:
    """Returns feeds as onnxruntime's calibration asks for them: one after the other, then None."""
    return type("Reader", (base,), {"get_next": lambda _: next(feeds, None)})()


def _bound(session: Any, feeds: Mapping[str, Any], device: torch.device) -> Run:
    """Returns a run on a GPU that copies nothing to it and nothing back."""
    from onnxruntime import OrtValue

    binding, index = session.io_binding(), device.index or 0
    for name, value in feeds.items():
        binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(value, "cuda", index))
    for entry in session.get_outputs():
        binding.bind_output(entry.name, "cuda", index)
    return lambda: session.run_with_iobinding(binding)

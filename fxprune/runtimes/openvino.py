"""OpenVINO's files: an .xml with the weights in a .bin beside it, made of an exported program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune._base.errors import ExportError, raised_as
from fxprune._base.extras import need
from fxprune.data.calls import Call
from fxprune.runtimes.program import Program
from fxprune.runtimes.registry import Loaded, Run
from fxprune.runtimes.running import arrays_of, at_these_sizes, silent
from fxprune.runtimes.setting import Setting


@dataclass(frozen=True, slots=True)
class OpenVino:
    """Runs a compiled model of OpenVINO on the CPU, in the precision of its weights; its memory is its own."""

    name: str = "openvino"
    fuses: bool = True
    devices: tuple[str, ...] = ("cpu",)
    peak_on: tuple[str, ...] = ()
    suffix: str = ".xml"
    format: str = "OpenVINO IR"

    def write(self, program: Program, path: Path) -> None:
        """Converts a program and saves it.

        Raises:
            ExportError: an operator has no OpenVINO form.
            MissingExtraError: the package is not installed.
        """
        openvino = _package()
        with raised_as(ExportError, "OpenVINO cannot convert the model"):
            openvino.save_model(_converted(program), path, compress_to_fp16=False)

    def quantize(
        self, source: Path, target: Path, program: Program, calls: Iterable[Call], settings: Mapping[str, Any]
    ) -> None:
        """Writes a file anew in int8, by NNCF's post-training quantization.

        Args:
            source: what `write` wrote.
            target: the new file.
            program: of which it was written.
            calls: to calibrate on.
            settings: for ``nncf.quantize``, beside or instead of those here.

        Raises:
            ExportError: NNCF does not take the model, or finds nothing in it.
            MissingExtraError: a package is not installed.
        """
        nncf = need("nncf", "nncf", "an .xml file in int8")
        with raised_as(ExportError, "NNCF cannot quantize the model"), silent("nncf"):
            model = _package().Core().read_model(source)
            read = {entry.any_name for entry in model.inputs}
            arrays = [arrays_of(program, call, read, "OpenVINO") for call in calls]
            kind = nncf.ModelType.TRANSFORMER if program.attends() else None
            chosen = {"model_type": kind, "subset_size": len(arrays), **settings}
            quantized = nncf.quantize(model, nncf.Dataset(arrays), **chosen)
            if all(node.get_type_name() != "FakeQuantize" for node in quantized.get_ops()):
                raise ExportError("NNCF found nothing to quantize in the model: no convolution, no linear layer")
            _package().save_model(quantized, target, compress_to_fp16=False)

    def load(self, path: Path, program: Program) -> Loaded:
        """Returns what runs a file on the CPU.

        Raises:
            ExportError: OpenVINO does not take the file.
            MissingExtraError: it is not installed.
        """
        compiled = _compiled(path, 0)
        return lambda *args, **kwargs: [
            torch.from_numpy(array) for array in compiled(_feeds(compiled, program, (args, kwargs))).values()
        ]

    def runner(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], setting: Setting) -> Run:
        """Returns a run of a compiled model.

        Raises:
            ExportError: an operator has no OpenVINO form.
            MissingExtraError: the package is not installed.
        """
        program = at_these_sizes(model, args, kwargs)
        _package()
        with raised_as(ExportError, "OpenVINO cannot convert the model"):
            converted = _converted(program)
        compiled = _compiled(converted, setting.threads)
        arrays = _feeds(compiled, program, program.call)
        return lambda: list(compiled(arrays).values())


def _package() -> Any:
    return need("openvino", "openvino", "OpenVINO")


def _converted(program: Program) -> Any:
    """Returns OpenVINO's model of a program, its inputs in the program's order.

    What is no tensor, as ``use_cache``, is held by the program: OpenVINO makes an input of it that nothing reads.
    """
    model = _package().convert_model(program.exported)
    tensors = {value.name for value in program.inputs}
    for entry in model.get_parameters():
        if not tensors & entry.output(0).names:
            model.remove_parameter(entry)
    return model


def _compiled(model: Any, threads: int) -> Any:
    """Returns a compiled model; 0 threads are as many as OpenVINO likes.

    Without the hint float32 is computed in bfloat16 where the processor can.
    """
    settings: dict[str, Any] = {"EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_PRECISION_HINT": "f32"}
    settings |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
    with raised_as(ExportError, "OpenVINO does not take the model"):
        return _package().Core().compile_model(model, "CPU", settings)


def _feeds(compiled: Any, program: Program, call: Call) -> dict[str, Any]:
    """Returns a call's arrays by name: those that the model still reads."""
    return arrays_of(program, call, {entry.any_name for entry in compiled.inputs}, "OpenVINO")

"""Runtimes: what runs a model, one class each; export, bench and latency find it by its suffix or its name."""

from fxprune.runtimes.eager import Compiled, Eager
from fxprune.runtimes.executorch import ExecuTorch
from fxprune.runtimes.litert import LiteRt
from fxprune.runtimes.ncnn import Ncnn
from fxprune.runtimes.onnx import OnnxRuntime
from fxprune.runtimes.openvino import OpenVino
from fxprune.runtimes.pt2 import AotInductor, TorchExport
from fxprune.runtimes.registry import FileRuntime, QuantizingRuntime, Runtime, register_runtime
from fxprune.runtimes.running import from_file

__all__ = [
    "AotInductor",
    "Compiled",
    "Eager",
    "ExecuTorch",
    "FileRuntime",
    "LiteRt",
    "Ncnn",
    "OnnxRuntime",
    "OpenVino",
    "QuantizingRuntime",
    "Runtime",
    "TorchExport",
    "from_file",
    "register_runtime",
]

for _runtime in (
    Eager(),
    Compiled(),
    OnnxRuntime(),
    TorchExport(),
    AotInductor(),
    OpenVino(),
    ExecuTorch(),
    Ncnn(),
    LiteRt(),
):
    register_runtime(_runtime)

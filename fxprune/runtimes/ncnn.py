"""ncnn's files for phones: a .param with the weights in a .bin beside it, made by pnnx of an ONNX file, for one sample."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxprune._base.errors import ExportError, raised_as
from fxprune._base.extras import need
from fxprune.data.calls import tensors_of
from fxprune.runtimes.onnx import OnnxRuntime
from fxprune.runtimes.program import Program
from fxprune.runtimes.registry import Loaded, Run
from fxprune.runtimes.running import at_these_sizes, numpy_of
from fxprune.runtimes.setting import Setting


@dataclass(frozen=True, slots=True)
class Ncnn:
    """Runs a net of ncnn on the CPU in float32, one sample at a time; its memory is its own."""

    name: str = "ncnn"
    fuses: bool = True
    devices: tuple[str, ...] = ("cpu",)
    peak_on: tuple[str, ...] = ()
    suffix: str = ".ncnn.param"
    format: str = "ncnn net"
    single: bool = True

    def write(self, program: Program, path: Path) -> None:
        """Converts a program by way of ONNX; weights stay in float32.

        Raises:
            ExportError: ncnn has no layer for an operator.
            MissingExtraError: a package is not installed.
        """
        pnnx = need("pnnx", "ncnn", "an .ncnn.param file")
        need("ncnn", "ncnn", "an .ncnn.param file")
        with tempfile.TemporaryDirectory() as folder:
            OnnxRuntime().write(program, Path(folder) / "model.onnx")
            order = [pnnx.EXEC_PATH, "model.onnx", "fp16=0"]
            with raised_as(ExportError, "pnnx cannot be run"):
                done = subprocess.run(order, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
            files = [Path(folder) / f"model.ncnn.{kind}" for kind in ("param", "bin")]
            if done.returncode or not all(file.is_file() for file in files):
                raise ExportError(f"pnnx cannot convert the model: {_last(done.stderr)} (exit code {done.returncode})")
            if unknown := _unknown(done.stderr.splitlines()):
                raise ExportError(f"ncnn has no layer for {', '.join(unknown)}, of which the model is made")
            for file, target in zip(files, (path, path.with_suffix(".bin")), strict=True):
                target.write_bytes(file.read_bytes())

    def load(self, path: Path, program: Program) -> Loaded:
        """Returns what runs a file on the CPU.

        Raises:
            ExportError: ncnn does not take the file.
            MissingExtraError: it is not installed.
        """
        net = _net(path, 0)

        def run(*args: Any, **kwargs: Any) -> list[Tensor]:
            mats = [_mat(x) for x in tensors_of((args, kwargs))]
            return [
                torch.from_numpy(array.copy()).reshape(tuple(map(int, value.shape)))
                for array, value in zip(_extracted(net, mats), program.outputs, strict=True)
            ]

        return run

    def runner(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], setting: Setting) -> Run:
        """Returns a run of a net.

        Raises:
            ExportError: ncnn has no layer for an operator, or there are several samples.
            MissingExtraError: a package is not installed.
        """
        if setting.batch_size > 1:
            raise ExportError(f"ncnn runs one sample at a time, got a batch of {setting.batch_size}")
        program = at_these_sizes(model, args, kwargs)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"model{self.suffix}"
            self.write(program, path)
            net = _net(path, setting.threads)
        mats = [_mat(x) for x in tensors_of(program.call)]
        return lambda: _extracted(net, mats)


def _last(text: str) -> str:
    """Returns the last line that says something."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it says nothing")


def _unknown(lines: Iterable[str]) -> list[str]:
    """Returns the operators whose settings pnnx had to leave out, since ncnn has no such layers."""
    words = [line.split() for line in lines if line.startswith("ignore ")]
    return sorted({found[1] for found in words if len(found) > 3 and found[3] == "param"})


def _net(path: Path, threads: int) -> Any:
    """Returns the net of a file; 0 threads are as many as ncnn likes."""
    net = need("ncnn", "ncnn", "an .ncnn.param file").Net()
    for kind in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(net.opt, f"use_{kind}", False)
    if threads:
        net.opt.num_threads = threads
    if net.load_param(str(path)) or net.load_model(str(path.with_suffix(".bin"))):
        raise ExportError("ncnn does not take the file: a layer of it is not one of ncnn's")
    return net


def _mat(tensor: Tensor) -> Any:
    """Returns a tensor, ``[1, ...]`` of one sample or ``[...]``, as ncnn holds it; whole numbers have 32 bits there."""
    array = numpy_of(tensor, "ncnn")
    array = array.astype(np.int32) if array.dtype.kind in "iub" else array
    sample = {"batch_index": 0} if array.ndim > 1 and len(array) == 1 else {}
    return need("ncnn", "ncnn", "ncnn").Mat(array, **sample).clone()


def _extracted(net: Any, mats: list[Any]) -> list[Any]:
    """Returns the arrays that come out of a net, in order."""
    read = set(net.input_names())
    count = sum(name.startswith("out") for name in net.output_names())  # what is not read counts as one for ncnn
    with net.create_extractor() as extractor:
        for index, mat in enumerate(mats):
            if f"in{index}" in read:
                extractor.input(f"in{index}", mat)
        found = [extractor.extract(f"out{index}") for index in range(count)]
    if any(code for code, _ in found):
        raise ExportError("ncnn cannot run the net: a layer failed")
    return [mat.numpy(batch_index=0) for _, mat in found]

"""ONNX files, written by torch's exporter of exported programs and run by onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxprune._base.errors import ExportError, brief
from fxprune._base.extras import need
from fxprune.data.calls import Call
from fxprune.runtimes.calls import tensors_of
from fxprune.runtimes.compare import Runner
from fxprune.runtimes.program import Program

#: An ONNX file may have 2 GB; a model with more bytes of weights than this gets a second file beside it.
INLINE_LIMIT = 1536 << 20


def write(program: Program, path: Path, opset: int | None) -> tuple[Runner, int | None]:
    """Writes a program as ONNX and returns what runs it, and the opset; if it is large, in two files.

    Raises:
        ExportError: an operator has no ONNX form, or onnxruntime does not take the file.
        MissingExtraError: a package is not installed.
    """
    for name in ("onnx", "onnxscript"):
        need(name, "export", "an .onnx file")
    onnxruntime = need("onnxruntime", "export", "an .onnx file")
    try:
        written: Any = torch.onnx.export(
            program.exported,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=[value.name for value in program.inputs],
            output_names=[value.name for value in program.outputs],
        )
        written.rename_axes({str(symbol): name for symbol, name in program.names.items()})
        weights = sum(x.nbytes for x in program.exported.state_dict.values() if isinstance(x, Tensor))
        written.save(path, external_data=weights > INLINE_LIMIT)
    except Exception as error:  # exporters fail in their own ways
        raise ExportError(f"torch.onnx cannot write the model: {brief(error)}") from error
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # so do runtimes
        raise ExportError(f"onnxruntime does not take the file: {brief(error)}") from error

    def run(call: Call) -> list[Tensor]:
        given = {value.name: _array(x) for value, x in zip(program.inputs, tensors_of(call), strict=True)}
        taken = [entry.name for entry in session.get_inputs()]
        return [torch.from_numpy(array) for array in session.run(None, {name: given[name] for name in taken})]

    return run, int(written.model.opset_imports[""])


def _array(tensor: Tensor) -> Any:
    if tensor.dtype is torch.bfloat16:
        raise ExportError("onnxruntime takes numpy's arrays, which have no bfloat16: export pruned.float(), or .half()")
    return tensor.detach().cpu().contiguous().numpy()

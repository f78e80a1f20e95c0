"""Integers of eight bits in a runtime's own file, by that runtime's own quantizer."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from fxprune._base.defaults import MEMORY_LIMIT
from fxprune._base.errors import ExportError, raised_as
from fxprune.data.batches import Batches
from fxprune.data.calls import Call, tensors_of
from fxprune.data.checks import check_weights, device_of, probe
from fxprune.deployment.comparison import check_form
from fxprune.deployment.exporting import Exported, Order, checked_model, checked_runtime, written
from fxprune.deployment.quantization import varying_of
from fxprune.deployment.request import requested
from fxprune.reporting.fidelity import Reference
from fxprune.results.fidelity import Fidelity
from fxprune.runtimes.program import Program
from fxprune.runtimes.registry import Loaded, QuantizingRuntime, quantizer_for


def export_int8(
    pruned: nn.Module,
    path: str | PathLike[str],
    calib_data: Any,
    *,
    settings: Mapping[str, Any] | None = None,
    forward_args: Callable[[Any], Any] | None = None,
    dynamic_batch: bool = True,
    dynamic_shapes: Any = None,
    tolerance: float = 1e-4,
) -> Exported:
    """Writes a model to one file in int8, made by the quantizer of the runtime that the file is for.

    The file is first written and compared in floating point, as `export` does it; then the runtime's quantizer makes
    another of it: onnxruntime's static quantizer of ``.onnx`` (``QuantizeLinear`` and ``DequantizeLinear``; uint8 activations
    over the range that calibration shows, int8 weights by output channel), NNCF of ``.xml`` (`pip install 'fxprune[nncf]'`).
    That one is run as well, and what it gives on the calibration data is compared with the model:
    ``beside_floating_point`` of the result. It gets its name only if it runs at all sizes that the first was compared
    at; how close is close enough is for you to say. Fine-tune first, quantize last.

    Args:
        pruned: as `export` takes it; on the CPU. It stays as it is.
        path: where to; the directory must exist.
        calib_data: batches as `fxprune.compile` takes them; a few hundred samples are enough.
        settings: for the runtime's quantizer: arguments of ``onnxruntime.quantization.quantize_static``, such as
            ``{"reduce_range": True}`` for processors without VNNI, or of ``nncf.quantize``.
        forward_args: makes ``(args, kwargs)`` of a batch that has another form.
        dynamic_batch: see `export`.
        dynamic_shapes: see `export`.
        tolerance: of the file in floating point, see `export`.

    Raises:
        CalibrationError: the data are unusable.
        CaptureError: `torch.export` cannot capture the model.
        ExportError: the path is unusable, its runtime has no quantizer, or cannot quantize the model, or nothing of it.
        MissingExtraError: a package is not installed.
        OSError: the file cannot be written.
    """
    runtime = quantizer_for(Path(path))
    checked_runtime(Path(path), None)
    model = checked_model(pruned)
    check_weights(model)
    batches = Batches(calib_data, device=device_of(model), forward_args=forward_args)
    first = batches.first()
    probe(model, first)
    request = requested(model, (first.args, first.kwargs), None)
    finish = _Quantizing(runtime, batches, dict(settings or {}))
    order = Order(runtime, Path(path).absolute(), tolerance, dynamic_batch, dynamic_shapes, finish)
    return written(order, replace(request, varying=varying_of(request, batches)))


@dataclass(frozen=True, slots=True)
class _Quantizing:
    """Makes int8 of a file, in its place.

    Attributes:
        runtime: whose file it is.
        batches: to calibrate on, and to compare with.
        settings: for the runtime's quantizer.
    """

    runtime: QuantizingRuntime
    batches: Batches
    settings: Mapping[str, Any]

    def __call__(self, path: Path, program: Program, calls: Sequence[Call]) -> Fidelity:
        """Returns how close the new file is to the model."""
        name = self.runtime.name
        with tempfile.TemporaryDirectory() as folder:
            for file in list(path.parent.iterdir()):
                shutil.move(file, folder)
            with raised_as(ExportError, f"{name} cannot quantize the model"):
                self.runtime.quantize(Path(folder) / path.name, path, program, self._calls(program), self.settings)
        with raised_as(ExportError, f"{name} cannot run what it quantized"):
            loaded = self.runtime.load(path, program)
        check_form(program, calls, loaded, f"{path.name} in int8, run by {name},")
        return Reference(program.module, self.batches, MEMORY_LIMIT).of(_File(program, loaded))

    def _calls(self, program: Program) -> Iterator[Call]:
        return (program.call_of(batch.args, batch.kwargs) for batch in self.batches)


class _File(nn.Module):
    """A file, called as the model is."""

    def __init__(self, program: Program, loaded: Loaded) -> None:
        super().__init__()
        self._program, self._loaded = program, loaded

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = self._program.call_of(args, kwargs)
        return self._program.outputs_in_place(tensors_of(self._loaded(*args, **kwargs)))

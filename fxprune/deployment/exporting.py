"""Export: a model as one file for a runtime, compared with the model before it gets its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fxprune._base.errors import CaptureError, ExportError, raised_as
from fxprune._base.files import fresh_directory, sync
from fxprune.budget.multiples import awkward, itemsize_of, usual_multiple
from fxprune.capturing.limits import text_of
from fxprune.capturing.source import unwrapped
from fxprune.data.calls import Call, tensors_of
from fxprune.data.checks import device_of
from fxprune.deployment.comparison import FREE_SIZES, trials, worst_difference
from fxprune.deployment.request import Request, as_example, islands_of, requested
from fxprune.results.attached import report_if_any
from fxprune.results.fidelity import Fidelity
from fxprune.results.tables import few
from fxprune.runtimes.program import Program, Value, outputs_of, trace
from fxprune.runtimes.registry import FileRuntime, runtime_for
from fxprune.runtimes.running import of_one_sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What `export` wrote, and how closely it was found to follow the model.

    Attributes:
        path: the file.
        format: ``"ONNX"``, ``"torch.export"``, ``"AOTInductor package"``, or what another runtime calls its files.
        bytes: of the file and those beside it.
        beside: files that must stay beside it: the weights of an ONNX model above 1.5 GB.
        max_error: the largest difference of an output, over the largest magnitude of that output.
        tolerance: what it had to stay below.
        compared: for every call that was compared, the shapes of its inputs.
        inputs: of the file, in order; a size that may change has a name.
        outputs: likewise.
        opset: of an ONNX file.
        torch: the version that wrote it.
        conditions: on the sizes that may change, such as ``"x.shape[2] == (4*(x.shape[2]//4))"``: those that the file was
            made for; an ONNX file does not ask.
        beside_floating_point: of a file in int8, how close its outputs are to the model's on the calibration data;
            ``max_error`` is then of the file that it was made from.
        note: why sizes that are free in the model are fixed in the file; empty if none is.
        widths: which widths of the pruned model runtimes may be slow with; empty if there is none.
    """

    path: Path
    format: str
    bytes: int
    beside: tuple[Path, ...] = ()
    max_error: float
    tolerance: float
    compared: tuple[tuple[tuple[int, ...], ...], ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    opset: int | None = None
    torch: str = torch.__version__
    conditions: tuple[str, ...] = ()
    beside_floating_point: Fidelity | None = None
    note: str = ""
    widths: str = ""

    def __str__(self) -> str:
        """Returns the file, what goes in and comes out, and what was compared."""
        opset = "" if self.opset is None else f", opset {self.opset}"
        calls = "; ".join(", ".join(str(list(shape)) for shape in call) for call in self.compared)
        lines = [
            f"{self.path}: {self.format}{opset}, {self.bytes:,} bytes",
            *(f"beside it: {path.name}" for path in self.beside),
            f"inputs: {', '.join(map(str, self.inputs))}",
            f"outputs: {', '.join(map(str, self.outputs))}",
            f"{'before int8 ' if self.beside_floating_point else ''}equal to the model, relative error {self.max_error:.1e} (tolerance {self.tolerance:.0e}), for {calls}",
            *([f"made for sizes where {self._conditions()}"] if self.conditions else []),
            *([f"beside floating point: {figures(self.beside_floating_point)}"] if self.beside_floating_point else []),
            *(line for line in (self.note, self.widths) if line),
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON data."""
        data = asdict(self) | {"path": str(self.path), "beside": [str(path) for path in self.beside]}
        del data["beside_floating_point"]
        close = self.beside_floating_point
        return data if close is None else {**data, "beside_floating_point": close.to_dict()}

    def _conditions(self) -> str:
        more = len(self.conditions) - 3
        return ", ".join(self.conditions[:3]) + (f", and {more} more" if more > 0 else "")


def figures(close: Fidelity) -> str:
    """Returns how close outputs are, in a line."""
    return ", ".join(f"{name} {text}" for name, text in close.details().items()) or str(close)


def export(
    pruned: nn.Module,
    path: str | PathLike[str],
    example: Any = None,
    *,
    part: str | None = None,
    dynamic_batch: bool = True,
    dynamic_shapes: Any = None,
    tolerance: float = 1e-4,
    opset: int | None = None,
) -> Exported:
    """Writes a model to one file, which gets its name only if it was run and gives what the model gives.

    The path's suffix says which runtime writes it: ``.onnx`` (`torch.onnx`'s exporter of exported programs, run by
    onnxruntime on the CPU; `pip install 'fxprune[export]'`), ``.pt2`` (`torch.export.save`), ``.aoti.pt2``
    (an AOTInductor package for the model's device and this kind of processor; needs a C++ compiler), ``.xml`` (OpenVINO; the weights
    lie in a ``.bin`` beside it), ``.pte`` (ExecuTorch, by XNNPACK; free sizes go up to the call's),
    ``.ncnn.param`` (ncnn, for one sample; the weights lie in a ``.bin`` beside it), ``.tflite`` (LiteRT, likewise), or that of a runtime of your own (`register_runtime`). TorchScript has no part in it.

    The file computes what the model computes in evaluation mode. It is compared at the example's sizes and,
    where sizes may change, at others and at a batch of one. Until then it lies in a directory beside its
    place; whatever goes wrong, a file that was there before stays. Outputs of classes of their own
    (`ModelOutput`) become plain dicts, so that nothing but torch is needed to load the file. The model stays
    bit-identical and in its mode.

    Args:
        pruned: what `fxprune.compile` or `fxprune.load` returned, trained further or not; or, with
            ``example``, any module that `torch.export` can capture.
        path: where to; the directory must exist.
        example: a call in the form in which the file will be called: a tensor, a tuple of positional
            arguments, a dict of keyword arguments, or ``(args, kwargs)``. By default the call that the model
            was compiled with, with random values: one argument by position, several by name.
        part: the name of a submodule to export in the model's stead, such as one of the report's ``islands``
            of a detector that cannot be exported whole; ``example`` is then still a call of the model.
        dynamic_batch: the file takes any batch; False fixes the batch of the example.
        dynamic_shapes: as `torch.export.export` takes it, in place of the choice made here: all sizes that are free in the
            model, or, where the runtime does not give the same with these free, the batch and the length of token ids.
        tolerance: what may be between the outputs: the largest difference over the largest magnitude.
            Integers and booleans must be equal.
        opset: the ONNX opset; the exporter's own by default.

    Raises:
        ExportError: the path, the example or a size is unusable; the file could not be written; or an output
            differs, says which and by how much.
        CaptureError: `torch.export` cannot capture the model; names module and line.
        MissingExtraError: a package is not installed.
        OSError: the file cannot be written.
    """
    order = Order(checked_runtime(Path(path), opset), Path(path).absolute(), tolerance, dynamic_batch, dynamic_shapes)
    return written(order, requested(checked_model(pruned), example, part))


@dataclass(frozen=True, slots=True)
class Order:
    """How a file is to be made.

    Attributes:
        runtime: what writes and runs it.
        target: where it will lie.
        tolerance: see `export`.
        dynamic_batch: likewise.
        dynamic_shapes: likewise.
        finish: makes another file of one that passed, in its place, and says how close it is; takes the path, the program, and the
            calls that it was compared with.
    """

    runtime: FileRuntime
    target: Path
    tolerance: float
    dynamic_batch: bool
    dynamic_shapes: Any
    finish: Callable[[Path, Program, Sequence[Call]], Fidelity] | None = None


def written(order: Order, request: Request) -> Exported:
    """Returns a file that was made, with fewer sizes free where it has to be.

    Raises:
        FxpruneError: see `export`.
    """
    if order.dynamic_shapes is not None or not any(request.varying) or getattr(order.runtime, "single", False):
        return _exported(order, request)
    try:
        return _exported(order, request)
    except (CaptureError, ExportError) as error:  # some runtimes compute something else where a size is free
        note = (
            f"sizes that are free in the model are fixed in the file, since with them free: {error}. What may help: "
            f"dynamic_shapes= that frees some of them, {FREE_SIZES}"
        )
    return replace(_exported(order, replace(request, varying=())), note=note)


def _exported(order: Order, request: Request) -> Exported:
    runtime, target = order.runtime, order.target
    program = _traced(order, request)
    calls = trials(program, filled=request.filled, single=order.dynamic_batch and order.dynamic_shapes is None)
    with fresh_directory(target) as fresh:
        opset, difference, close = _write(order, program, calls, fresh / target.name)
        files = _put(fresh, target)
    return Exported(
        path=target,
        format=runtime.format,
        bytes=sum(file.stat().st_size for file in files),
        beside=tuple(file for file in files if file != target),
        max_error=difference,
        tolerance=order.tolerance,
        compared=tuple(tuple(tuple(x.shape) for x in tensors_of(call)) for call in calls),
        inputs=program.inputs,
        outputs=program.outputs,
        opset=opset,
        conditions=tuple(sorted(map(text_of, program.limits.conditions), key=_plainness)),
        beside_floating_point=close,
        widths=_awkward(request.module),
    )


def _awkward(model: nn.Module) -> str:
    """Returns which widths of a pruned model are no multiples of what its device works on at once, in a line."""
    found = report_if_any(model)
    if found is None:
        return ""
    multiple = usual_multiple(device_of(model), itemsize_of(model))
    odd = awkward(found.groups, multiple)
    if not odd:
        return ""
    such = few([str(width) for width in sorted(set(odd))], 4)
    return (
        f"widths: {len(odd)} of {len(found.groups)} groups keep no multiple of {multiple} channels, or of what they have room for ({such}), with "
        "which runtimes may be slower than with the dense model: compile to a budget without round_to, or with round_to=8"
    )


def _plainness(condition: str) -> tuple[bool, int, str]:
    """Returns what sorts conditions: equalities first, short ones first."""
    return "==" not in condition, len(condition), condition


def _traced(order: Order, request: Request) -> Program:
    single = getattr(order.runtime, "single", False)
    if single and order.dynamic_shapes:
        raise ExportError(f"dynamic_shapes: files of {order.runtime.name} are for one sample of one size")
    try:
        program = trace(
            request.module,
            request.call,
            request.varying,
            dynamic_batch=order.dynamic_batch,
            dynamic_shapes=order.dynamic_shapes,
            bounded=getattr(order.runtime, "bounded", False),
        )
        return of_one_sample(program) if single else program
    except CaptureError as error:
        if request.filled:
            with as_example():
                outputs_of(request.module, request.call)
        raise _with_parts(request.module, error) from error


def _write(
    order: Order, program: Program, calls: Sequence[Call], path: Path
) -> tuple[int | None, float, Fidelity | None]:
    """Returns the opset, the largest difference from the model, and how close what was made of the file is."""
    runtime = order.runtime
    with raised_as(ExportError, f"{runtime.name} cannot write the model"):
        opset = runtime.write(program, path)
        if not path.is_file():
            raise ExportError(f"{runtime.name} cannot write the model: its write() left no file {path.name}")
        loaded = runtime.load(path, program)
    difference = worst_difference(program, calls, loaded, order.tolerance, f"{path.name}, run by {runtime.name},")
    del loaded  # it may hold the file open
    return opset, difference, None if order.finish is None else order.finish(path, program, calls)


def checked_runtime(target: Path, opset: int | None) -> FileRuntime:
    """Returns the runtime that a path asks for, with the opset if one is wanted.

    Raises:
        ExportError: there is none, it knows no opsets, or no file can lie there.
    """
    runtime = runtime_for(target)
    if opset is not None and "opset" not in getattr(runtime, "__dataclass_fields__", {}):
        raise ExportError(f"opset={opset}: only an .onnx file has an opset, got {target.name}")
    if target.is_dir():
        raise ExportError(f"{target}: expected a file name, got a directory: add a name such as model{runtime.suffix}")
    if not target.parent.is_dir():
        raise ExportError(f"{target.parent}: there is no such directory: make it first")
    return runtime if opset is None else cast("FileRuntime", replace(cast(Any, runtime), opset=opset))


def checked_model(pruned: Any) -> nn.Module:
    """Returns the model itself.

    Raises:
        ExportError: it is none, or has no values.
    """
    if not isinstance(pruned, nn.Module):
        raise ExportError(f"expected a torch.nn.Module, got {type(pruned).__name__}")
    model = unwrapped(pruned)
    if any(isinstance(tensor, Tensor) and tensor.is_meta for tensor in model.state_dict().values()):
        raise ExportError("the model lies on the meta device and has no values to export: load them first")
    return model


def _with_parts(model: nn.Module, error: CaptureError) -> CaptureError:
    """Returns the error, with a word on parts that can be exported where the whole cannot."""
    parts = " or ".join(f"part={part!r}" for part in islands_of(model))
    if not parts:
        return error
    return CaptureError(f"the model cannot be exported whole, only its parts: pass {parts}. {error}")


def _put(fresh: Path, target: Path) -> Sequence[Path]:
    """Renames what was written to its place, the file itself last, and returns the paths."""
    files = sorted(fresh.iterdir(), key=lambda file: file.name == target.name)
    for file in files:
        sync(file)
    if len(files) > 1:
        target.unlink(missing_ok=True)  # rather no file than one beside another's weights
    for file in files:
        file.replace(target.parent / file.name)
    if target.suffix == ".onnx" and len(files) == 1:
        target.with_name(f"{target.name}.data").unlink(missing_ok=True)  # another export's weights
    sync(target.parent)
    return [target.parent / file.name for file in files]

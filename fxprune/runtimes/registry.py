"""What a runtime is, and those that are known: by name for what is timed, by suffix for what is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast

from torch import nn

from fxprune._base.errors import BackendError, BudgetError, ExportError
from fxprune._base.given import check_parts

if TYPE_CHECKING:
    from fxprune.data.calls import Call
    from fxprune.runtimes.program import Program
    from fxprune.runtimes.setting import Setting

#: The names of the runtimes that are there from the start; `register_runtime` adds others.
BackendName: TypeAlias = Literal[
    "eager", "compiled", "onnxruntime", "torch.export", "aotinductor", "openvino", "executorch", "ncnn", "litert"
]

#: One forward pass on inputs that do not change.
Run: TypeAlias = Callable[[], Any]

#: A model that was read from a file: takes a call, gives the tensors that come out, in order, in any containers.
Loaded: TypeAlias = Callable[..., Any]


class Runtime(Protocol):
    """What runs a model: a small frozen class whose fields say what others would have to know it by name for."""

    @property
    def name(self) -> str:
        """As ``backend=`` takes it."""

    @property
    def fuses(self) -> bool:
        """Whether it fuses what lies between contractions with them, so that a table of latencies need not hold it."""

    @property
    def devices(self) -> tuple[str, ...]:
        """The kinds of device (``torch.device.type``) that it runs on; none are all."""

    @property
    def peak_on(self) -> tuple[str, ...]:
        """Those of ``"cpu"`` and ``"cuda"`` on which torch gives it its memory, operator by operator, and can tell its peak."""

    def runner(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], setting: Setting) -> Run:
        """Returns what runs a model once, ready to be timed: compiled, loaded, its inputs where they are read.

        Args:
            model: on the setting's device, in eval mode; it stays as it is.
            args: positional arguments, on the device, of the setting's batch size.
            kwargs: keyword arguments, likewise.
            setting: where, and with how many threads.
        """


class FileRuntime(Runtime, Protocol):
    """A runtime that writes a model to a file and runs that."""

    @property
    def suffix(self) -> str:
        """Of its files, such as ``".onnx"``; empty if it writes none after all."""

    @property
    def format(self) -> str:
        """What such a file is called."""

    def write(self, program: Program, path: Path) -> int | None:
        """Writes a program; what it needs beside the file lies in the same directory, which is empty before.

        Returns:
            The opset of the file, if its format has such.
        """

    def load(self, path: Path, program: Program) -> Loaded:
        """Returns what runs a file, called as the program's module is; `export` compares the two."""


class QuantizingRuntime(FileRuntime, Protocol):
    """A runtime whose own tools make int8 of its files."""

    def quantize(
        self, source: Path, target: Path, program: Program, calls: Iterable[Call], settings: Mapping[str, Any]
    ) -> None:
        """Writes what `write` wrote anew, in int8.

        Args:
            source: what `write` wrote, alone in its directory, where other files may be left.
            target: the new file, in an empty directory.
            program: of which it was written.
            calls: to calibrate on, of the program's form.
            settings: for the tool, beside or instead of what the runtime chooses.
        """


_PARTS: dict[str, Any] = {"name": str, "fuses": bool, "devices": tuple, "peak_on": tuple, "runner": Callable}
_FILE_PARTS: dict[str, Any] = {"suffix": str, "format": str, "write": Callable, "load": Callable}

_RUNTIMES: dict[str, Runtime] = {}


def register_runtime(runtime: Runtime) -> None:
    """Makes a runtime known: to `fxprune.bench` and `Budget` by name, to `fxprune.export` by suffix if it has one.

    Args:
        runtime: an object with the parts of `Runtime`; with those of `fxprune.runtimes.FileRuntime` as well if it
            writes files.

    Raises:
        BackendError: a part is missing or malformed, or the name or the suffix is taken.
    """
    _check(runtime)
    if runtime.name in _RUNTIMES:
        raise BackendError(f"a runtime named {runtime.name!r} is registered already")
    suffix = getattr(runtime, "suffix", "")
    if owners := [known.name for known in _writers() if known.suffix == suffix]:
        raise BackendError(f"runtime {runtime.name!r}: {owners[0]!r} writes {suffix} files already")
    _RUNTIMES[runtime.name] = runtime


def _check(runtime: Any) -> None:
    parts = _PARTS | (_FILE_PARTS if any(hasattr(runtime, part) for part in _FILE_PARTS) else {})
    check_parts(BackendError, "expected a runtime", runtime, parts)
    if (suffix := getattr(runtime, "suffix", "")) and not (suffix.startswith(".") and len(suffix) > 1):
        raise BackendError(f"runtime {runtime.name!r}: suffix: expected one such as '.onnx', got {suffix!r}")


def _writers() -> list[FileRuntime]:
    """Returns the runtimes that write files."""
    return [cast("FileRuntime", runtime) for runtime in _RUNTIMES.values() if getattr(runtime, "suffix", "")]


def runtime_of(name: Any) -> Runtime:
    """Returns a runtime by its name.

    Raises:
        BudgetError: there is none; lists those there are.
    """
    if not isinstance(name, str) or name not in _RUNTIMES:
        raise BudgetError(f"backend: expected one of {', '.join(_RUNTIMES)}, got {name!r}")
    return _RUNTIMES[name]


def runtime_for(target: Path) -> FileRuntime:
    """Returns the runtime that writes a file of this name: the one with the longest suffix that fits.

    Raises:
        ExportError: there is none; lists the suffixes there are.
    """
    fitting = [r for r in _writers() if target.name.endswith(r.suffix) and target.name != r.suffix]
    if not fitting:
        known = ", ".join(f"{runtime.suffix} ({runtime.format})" for runtime in _writers())
        raise ExportError(f"{target}: expected a file name that ends in one of {known}")
    return max(fitting, key=lambda runtime: len(runtime.suffix))


def quantizer_for(target: Path) -> QuantizingRuntime:
    """Returns the runtime that writes a file of this name, if it can in int8.

    Raises:
        ExportError: there is none, or it cannot; lists the suffixes of those that can.
    """
    runtime = runtime_for(target)
    if not hasattr(runtime, "quantize"):
        able = " and ".join(known.suffix for known in _writers() if hasattr(known, "quantize"))
        raise ExportError(
            f"{target}: {runtime.name} has no quantizer of its own, those of {able} files have: export what fxprune.quantize "
            "returns (torchao's integers)"
        )
    return cast("QuantizingRuntime", runtime)


def suffixes() -> tuple[str, ...]:
    """Returns how the files end that runtimes write."""
    return tuple(runtime.suffix for runtime in _writers())


def names() -> tuple[str, ...]:
    """Returns the names of all runtimes, in the order in which they were registered."""
    return tuple(_RUNTIMES)

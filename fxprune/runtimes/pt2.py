"""Exported programs as files: those of `torch.export`, and packages of AOTInductor, compiled for one kind of device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune._base.errors import ExportError, brief, raised_as
from fxprune.capturing.fakes import unlogged
from fxprune.runtimes.program import Program
from fxprune.runtimes.registry import Loaded, Run
from fxprune.runtimes.running import from_file
from fxprune.runtimes.setting import Setting


@dataclass(frozen=True, slots=True)
class TorchExport:
    """Runs an exported program, whose operators are those of eager PyTorch."""

    name: str = "torch.export"
    fuses: bool = False
    devices: tuple[str, ...] = ()
    peak_on: tuple[str, ...] = ("cpu", "cuda")
    suffix: str = ".pt2"
    format: str = "torch.export"

    def write(self, program: Program, path: Path) -> None:
        """Saves a program.

        Raises:
            ExportError: it cannot be saved.
        """
        with raised_as(ExportError, "torch.export cannot save the model"):
            torch.export.save(program.exported, path)

    def load(self, path: Path, program: Program) -> Loaded:
        """Returns the program's module.

        Raises:
            ExportError: it cannot be loaded.
        """
        with raised_as(ExportError, "torch.export cannot load what it saved"), unlogged():
            return torch.export.load(path).module()

    def runner(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], setting: Setting) -> Run:
        """Returns a call of the file's module."""
        return from_file(self, model, args, kwargs)


@dataclass(frozen=True, slots=True)
class AotInductor:
    """Runs a package that was compiled ahead of time; on a CPU its memory is that of a single operator."""

    name: str = "aotinductor"
    fuses: bool = True
    devices: tuple[str, ...] = ()
    peak_on: tuple[str, ...] = ("cuda",)
    suffix: str = ".aoti.pt2"
    format: str = "AOTInductor package"

    def write(self, program: Program, path: Path) -> None:
        """Compiles a program into a package.

        Raises:
            ExportError: there is no C++ compiler, or it cannot be compiled.
        """
        _need_compiler()
        from torch import _inductor

        with raised_as(ExportError, "AOTInductor cannot compile the model"), torch.no_grad():
            _inductor.aoti_compile_and_package(program.exported, package_path=str(path))

    def load(self, path: Path, program: Program) -> Loaded:
        """Returns the package.

        Raises:
            ExportError: it cannot be loaded.
        """
        from torch import _inductor

        with raised_as(ExportError, "AOTInductor cannot load its package"):
            package: Loaded = _inductor.aoti_load_package(str(path))
        return package

    def runner(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], setting: Setting) -> Run:
        """Returns a call of the package, compiled for the sizes of these arguments and the threads that torch has now."""
        return from_file(self, model, args, kwargs)


def _need_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:  # of several classes, none of them public
        raise ExportError(
            f"an .aoti.pt2 package needs a C++ compiler ({brief(error)}): install g++ or clang, or set CXX"
        ) from error

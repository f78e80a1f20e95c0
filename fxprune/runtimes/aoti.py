"""Packages of AOTInductor: compiled code and weights, for one kind of device."""

from __future__ import annotations

from pathlib import Path

import torch

from fxprune._base.errors import ExportError, brief
from fxprune.data.calls import Call
from fxprune.runtimes.calls import tensors_of
from fxprune.runtimes.compare import Runner
from fxprune.runtimes.program import Program


def write(program: Program, path: Path, opset: int | None) -> tuple[Runner, int | None]:
    """Compiles a program into a package, loads it and returns what runs it.

    Raises:
        ExportError: there is no C++ compiler, or it cannot be compiled or loaded.
    """
    _need_compiler()
    from torch import _inductor

    try:
        with torch.no_grad():
            _inductor.aoti_compile_and_package(program.exported, package_path=str(path))
        module = _inductor.aoti_load_package(str(path))
    except Exception as error:  # compilers fail in their own ways
        raise ExportError(f"AOTInductor cannot compile the model: {brief(error)}") from error

    def run(call: Call) -> list[torch.Tensor]:
        with torch.no_grad():
            return tensors_of(module(*call[0], **call[1]))

    return run, None


def _need_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:  # of several classes, none of them public
        raise ExportError(
            f"an .aoti.pt2 package needs a C++ compiler ({brief(error)}): install g++ or clang, or set CXX"
        ) from error

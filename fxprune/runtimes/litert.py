"""LiteRT's files (once TensorFlow Lite) for phones and microcontrollers, made by litert-torch, for one sample."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune._base.errors import ExportError, raised_as
from fxprune._base.extras import need
from fxprune.data.calls import Call, tensors_of
from fxprune.runtimes.program import Program
from fxprune.runtimes.registry import Loaded, Run
from fxprune.runtimes.running import at_these_sizes, numpy_of, silent
from fxprune.runtimes.setting import Setting


@dataclass(frozen=True, slots=True)
class LiteRt:
    """Runs an interpreter of LiteRT on the CPU; its memory is its own."""

    name: str = "litert"
    fuses: bool = True
    devices: tuple[str, ...] = ("cpu",)
    peak_on: tuple[str, ...] = ()
    suffix: str = ".tflite"
    format: str = "LiteRT model"
    single: bool = True

    def write(self, program: Program, path: Path) -> None:
        """Converts a program; inputs are ``args_0, ...`` and outputs ``output_0, ...`` in the file, in the program's order.

        Raises:
            ExportError: an operator has no LiteRT form.
            MissingExtraError: a package is not installed.
        """
        converter = need("litert_torch", "litert", "a .tflite file")
        with raised_as(ExportError, "litert-torch cannot convert the model"), silent("root"):
            flat = _Flat(program)
            converter.convert(flat, tuple(tensors_of(program.call)), enable_x64=True).export(str(path))

    def load(self, path: Path, program: Program) -> Loaded:
        """Returns what runs a file on the CPU.

        Raises:
            ExportError: LiteRT does not take the file.
            MissingExtraError: it is not installed.
        """
        runner = _runner(path, None)

        def run(*args: Any, **kwargs: Any) -> list[Tensor]:
            arrays = _arrays(runner, _feeds(runner, (args, kwargs)))
            return [torch.from_numpy(array.copy()) for array in arrays]

        return run

    def runner(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], setting: Setting) -> Run:
        """Returns a run of an interpreter.

        Raises:
            ExportError: an operator has no LiteRT form.
            MissingExtraError: a package is not installed.
        """
        program = at_these_sizes(model, args, kwargs)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"model{self.suffix}"
            self.write(program, path)
            runner = _runner(path, setting.threads)
        feeds = _feeds(runner, program.call)
        return lambda: _arrays(runner, feeds)


class _Flat(nn.Module):
    """A program that takes its tensors one by one, ``[...]`` each, and gives a tuple of them: files then name them in order."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self._module = program.exported.module()
        self._leaves, self._spec = pytree.tree_flatten(program.call)
        for module in self.modules():
            module.training = False  # which an exported program refuses to be told

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        return tuple(tensors_of(self._module(*args, **kwargs)))


def _runner(path: Path, threads: int | None) -> Any:
    """Returns what runs a file by name; None are as many threads as LiteRT likes."""
    interpreter = need("ai_edge_litert.interpreter", "litert", "a .tflite file")
    with raised_as(ExportError, "LiteRT does not take the file"):
        return interpreter.Interpreter(model_content=path.read_bytes(), num_threads=threads).get_signature_runner()


def _feeds(runner: Any, call: Call) -> dict[str, Any]:
    """Returns a call's arrays by name: those that the file still reads."""
    given = {f"args_{index}": numpy_of(x, "LiteRT") for index, x in enumerate(tensors_of(call))}
    return {name: given[name] for name in runner.get_input_details()}


def _arrays(runner: Any, feeds: Mapping[str, Any]) -> list[Any]:
    """Returns what comes out of a run, in order."""
    found = runner(**feeds)
    return [found[f"output_{index}"] for index in range(len(found))]

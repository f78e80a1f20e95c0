"""ExecuTorch's programs for phones and small devices: what XNNPACK has a kernel for is lowered to it, the rest stays portable."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune._base.errors import ExportError, raised_as
from fxprune._base.extras import need
from fxprune.runtimes.program import Program
from fxprune.runtimes.registry import Loaded, Run
from fxprune.runtimes.running import from_file, silent
from fxprune.runtimes.setting import Setting


@dataclass(frozen=True, slots=True)
class ExecuTorch:
    """Runs a program of ExecuTorch by its Python runtime on the CPU; its memory is planned when the file is written."""

    name: str = "executorch"
    fuses: bool = True
    devices: tuple[str, ...] = ("cpu",)
    peak_on: tuple[str, ...] = ()
    suffix: str = ".pte"
    format: str = "ExecuTorch program"
    bounded: bool = True

    def write(self, program: Program, path: Path) -> None:
        """Lowers a program to XNNPACK and saves it.

        Raises:
            ExportError: it cannot be lowered.
            MissingExtraError: the package is not installed.
        """
        exir = need("executorch.exir", "executorch", "a .pte file")
        xnnpack = need("executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch", "a .pte file")
        with raised_as(ExportError, "ExecuTorch cannot lower the model"), silent("executorch"):
            edge = exir.to_edge_transform_and_lower(program.exported, partitioner=[xnnpack.XnnpackPartitioner()])
            with path.open("wb") as file:
                edge.to_executorch().write_to_file(file)

    def load(self, path: Path, program: Program) -> Loaded:
        """Returns what runs a file on the CPU.

        Raises:
            ExportError: ExecuTorch does not take the file.
            MissingExtraError: it is not installed.
        """
        runtime = need("executorch.runtime", "executorch", "a .pte file")
        with raised_as(ExportError, "ExecuTorch does not take the file"):
            loaded = runtime.Runtime.get().load_program(path.read_bytes())
            loaded.load_method("forward")
        # a method reads memory of its program, which it does not hold: whoever calls must
        return lambda *args, **kwargs: loaded.load_method("forward").execute(_plain(args, kwargs))

    def runner(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], setting: Setting) -> Run:
        """Returns a run of the file, by the setting's threads, which later ones of this process have as well.

        Raises:
            ExportError: it cannot be lowered.
            MissingExtraError: the package is not installed.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it calls itself experimental
            pool = need("executorch.extension.pybindings.portable_lib", "executorch", "ExecuTorch")
        pool._unsafe_reset_threadpool(setting.threads)
        return from_file(self, model, args, kwargs)


def _plain(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """Returns what a call holds in order; the runtime reads tensors as they lie in memory."""
    leaves = pytree.tree_leaves((args, dict(kwargs)))
    return [x.contiguous() if isinstance(x, Tensor) else x for x in leaves]

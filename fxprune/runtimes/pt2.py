"""Files of `torch.export`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune._base.errors import ExportError, raised_as
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
        with raised_as(ExportError, "torch.export cannot load what it saved"):
            module: Loaded = torch.export.load(path).module()
        return module

    def runner(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], setting: Setting) -> Run:
        """Returns a call of the file's module."""
        return from_file(self, model, args, kwargs)

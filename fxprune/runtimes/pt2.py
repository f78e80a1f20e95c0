"""Files of `torch.export`."""

from __future__ import annotations

from pathlib import Path

import torch

from fxprune._base.errors import ExportError, brief
from fxprune.data.calls import Call
from fxprune.runtimes.calls import tensors_of
from fxprune.runtimes.compare import Runner
from fxprune.runtimes.program import Program


def write(program: Program, path: Path, opset: int | None) -> tuple[Runner, int | None]:
    """Writes a program, loads it again and returns what runs it.

    Raises:
        ExportError: it cannot be written or loaded.
    """
    try:
        torch.export.save(program.exported, path)
        module = torch.export.load(path).module()
    except Exception as error:  # of several classes, none of them public
        raise ExportError(f"torch.export cannot save the model: {brief(error)}") from error

    def run(call: Call) -> list[torch.Tensor]:
        with torch.no_grad():
            return tensors_of(module(*call[0], **call[1]))

    return run, None

"""PyTorch as it is: one operator after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from fxprune.runtimes.registry import Run
from fxprune.runtimes.setting import Setting


@dataclass(frozen=True, slots=True)
class Eager:
    """Runs the module itself."""

    name: str = "eager"
    fuses: bool = False
    devices: tuple[str, ...] = ()
    peak_on: tuple[str, ...] = ("cpu", "cuda")

    def runner(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], setting: Setting) -> Run:
        """Returns a call of the model."""
        return lambda: model(*args, **kwargs)

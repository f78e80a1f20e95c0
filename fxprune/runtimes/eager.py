"""PyTorch in this process: one operator after the other, or as `torch.compile` makes kernels of the model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxprune.runtimes.registry import Run
from fxprune.runtimes.setting import Setting

#: Beyond its limits torch.compile falls back to eager without a word.
_LIMITS: dict[str, Any] = {"recompile_limit": 4096, "accumulated_recompile_limit": 65536}


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


@dataclass(frozen=True, slots=True)
class Compiled:
    """Runs what `torch.compile` makes of the module; on a CPU its memory is that of a single operator."""

    name: str = "compiled"
    fuses: bool = True
    devices: tuple[str, ...] = ()
    peak_on: tuple[str, ...] = ("cuda",)

    def runner(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], setting: Setting) -> Run:
        """Returns a call of the compiled model, for the sizes of these arguments."""
        import torch._dynamo as dynamo

        faster = torch.compile(model, dynamic=False)
        with dynamo.config.patch(_LIMITS), torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            faster(*args, **kwargs)
        return lambda: faster(*args, **kwargs)

"""What `fxprune quantize` shows: the file, and how much of the outputs is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from fxprune._base.defaults import MEMORY_LIMIT
from fxprune.data.batches import Batches
from fxprune.data.checks import device_of
from fxprune.deployment.exporting import Exported, figures
from fxprune.reporting.fidelity import Reference
from fxprune.results.fidelity import Fidelity


@dataclass(frozen=True, slots=True)
class Quantized:
    """A model in int8.

    Attributes:
        written: the file, which gives what the int8 model gives.
        close: the int8 model beside the one in floating point, on the calibration data.
    """

    written: Exported
    close: Fidelity

    def __str__(self) -> str:
        """Returns the file, and how close it is."""
        return f"{self.written}\nbeside floating point: {figures(self.close)}"

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON data."""
        return {**self.written.to_dict(), "beside_floating_point": self.close.to_dict()}


def fidelity_of(pruned: nn.Module, int8: nn.Module, data: Any) -> Fidelity:
    """Returns how close int8 comes to floating point on these data."""
    return Reference(pruned, Batches(data, device=device_of(pruned)), MEMORY_LIMIT).of(int8)

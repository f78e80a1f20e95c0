"""Replacements: the tensors that recovery has changed so far, at full size."""

from __future__ import annotations

from torch import Tensor

from fxprune._base.names import fetch
from fxprune.coupling.coupling import Coupling
from fxprune.recovery.consumers import Consumer


class Replacements:
    """Full-size replacements of parameters and buffers; what was not changed is the model's own.

    Args:
        coupling: of the captured graph.

    Attributes:
        tensors: name -> replacement; grows.
    """

    def __init__(self, coupling: Coupling) -> None:
        self._module = coupling.captured.module
        self.tensors: dict[str, Tensor] = {}

    def value(self, name: str) -> Tensor:
        """Returns a parameter or buffer as recovery has left it so far."""
        found: Tensor = self.tensors[name] if name in self.tensors else fetch(self._module, name).detach()
        return found

    def add(self, consumer: Consumer, update: Tensor, shift: Tensor) -> None:
        """Changes a layer.

        Args:
            consumer: the layer.
            update: is added to its weight, ``[groups, outputs, columns]``.
            shift: is added to its outputs, ``[groups, outputs]``, where the layer has a home for that.
        """
        weight = self.value(consumer.weight)
        new = consumer.matrix(weight).double() + update
        self.tensors[consumer.weight] = new.reshape(weight.shape).to(weight.dtype)
        if consumer.home is not None:
            home = self.value(consumer.home.tensor)
            moved = home.double() + consumer.home.sign * shift.reshape(-1)
            self.tensors[consumer.home.tensor] = moved.to(home.dtype)

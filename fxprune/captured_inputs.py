"""Calibration batches as a captured graph's flat inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from fxprune.capture import Captured
from fxprune.data import Batches
from fxprune.errors import CalibrationError


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """Flat inputs, batch by batch, as often as they are asked for."""

    source: Iterable[Sequence[Tensor]]

    @staticmethod
    def of(source: Iterable[Sequence[Tensor]]) -> Inputs:
        """Returns ``source`` as Inputs."""
        return source if isinstance(source, Inputs) else Inputs(source)

    def __iter__(self) -> Iterator[Sequence[Tensor]]:
        """Starts anew."""
        return iter(self.source)


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationInputs:
    """The flat inputs of calibration batches for one captured graph."""

    captured: Captured
    batches: Batches

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Yields the flat inputs of each batch.

        Raises:
            CalibrationError: a batch does not fit the captured call.
        """
        for index, batch in enumerate(self.batches):
            try:
                yield self.captured.call.flatten(batch.args, batch.kwargs)
            except TypeError as error:
                raise CalibrationError(
                    f"calibration batch {index} does not fit the captured model: {error}"
                ) from error

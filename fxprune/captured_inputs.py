"""Calibration batches as a captured graph's flat inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from fxprune.capture import Captured, TensorInfo
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
                leaves = self.captured.call.flatten(batch.args, batch.kwargs)
            except TypeError as error:
                raise CalibrationError(
                    f"calibration batch {index} does not fit the captured model: {error}"
                ) from error
            self._check_sizes(leaves, index)
            yield leaves

    def _check_sizes(self, leaves: Sequence[Tensor], index: int) -> None:
        nodes = [node for node in self.captured.module.graph.nodes if node.op == "placeholder"]
        for node, leaf in zip(nodes, leaves, strict=True):
            info: TensorInfo = self.captured.info[node]
            for axis, (size, example) in enumerate(zip(info.shape, info.example, strict=True)):
                if size == example != leaf.shape[axis]:
                    raise CalibrationError(
                        f"calibration batch {index}: {node.name}: the model takes {example} in dimension {axis}, got shape "
                        f"{list(leaf.shape)}; if the size may change, see dynamic_shapes"
                    )

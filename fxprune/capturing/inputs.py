"""Calibration batches as a captured graph's flat inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from fxprune._base.errors import CalibrationError, ShapeError
from fxprune.capturing.captured import Captured
from fxprune.data.batch import Batch
from fxprune.data.batches import Batches, need_targets

#: The inputs of a captured graph, one tensor for each placeholder.
Flat: TypeAlias = Sequence[Tensor]


@runtime_checkable
class Inputs(Protocol):
    """Flat inputs, batch by batch, as often as they are asked for."""

    def __iter__(self) -> Iterator[Flat]:
        """Yields the flat inputs of each batch."""
        ...

    def __len__(self) -> int:
        """Returns the number of batches.

        Raises:
            TypeError: it is not known beforehand.
        """
        ...

    def labelled(self, method: str) -> Iterator[tuple[Flat, Any]]:
        """Yields (flat inputs, targets) of each batch; ``method`` is who asks, for the message.

        Raises:
            CalibrationError: there are no targets.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class PlainInputs:
    """Flat inputs given as they are.

    Attributes:
        source: the flat inputs of each batch.
        targets: the targets of each batch, if there are any.
    """

    source: Iterable[Flat]
    targets: Iterable[Any] | None = None

    def __iter__(self) -> Iterator[Flat]:
        """Yields the flat inputs of each batch.

        Raises:
            CalibrationError: a batch is no sequence of tensors.
        """
        return map(_flat, self.source)

    def __len__(self) -> int:
        """Returns the number of batches."""
        return len(self.source)  # type: ignore[arg-type]

    def labelled(self, method: str) -> Iterator[tuple[Flat, Any]]:
        """Yields (flat inputs, targets) of each batch."""
        if self.targets is None:
            raise CalibrationError(f"method {method!r} needs targets: pass PlainInputs(inputs, targets)")
        return zip(self, self.targets, strict=True)


def _flat(batch: Any) -> Flat:
    if isinstance(batch, (tuple, list)) and all(isinstance(x, Tensor) for x in batch):
        return batch
    write = f"a tensor {list(batch.shape)}: write [(x,)] for [x]" if isinstance(batch, Tensor) else type(batch).__name__
    if isinstance(batch, (tuple, list)):
        write += f" of {', '.join(sorted({type(x).__name__ for x in batch}))}"
    raise CalibrationError(f"inputs: expected for each batch a tuple of the graph's flat inputs, got {write}")


def inputs_of(source: Iterable[Flat]) -> Inputs:
    """Returns flat inputs, ``[...]`` each, as `Inputs`; what can be gone through once only is kept, for it is read again.

    Raises:
        CalibrationError: they are no batches.
    """
    given: Any = source
    if isinstance(given, Tensor | Mapping) or not isinstance(given, Iterable):
        got = f"a tensor {list(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        expected = "expected batches, each a tuple of the graph's flat inputs: [(x,), ...]"
        raise CalibrationError(f"inputs: {expected}, got {got}")
    if isinstance(source, Inputs):
        return source
    return PlainInputs(list(source) if isinstance(source, Iterator) else source)


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationInputs:
    """The flat inputs of calibration batches for one captured graph."""

    captured: Captured
    batches: Batches

    def __iter__(self) -> Iterator[Flat]:
        """Yields the flat inputs of each batch.

        Raises:
            CalibrationError: a batch does not fit the captured call.
        """
        for index, batch in enumerate(self.batches):
            yield self._flat(batch, index)

    def __len__(self) -> int:
        """Returns the number of batches."""
        return len(self.batches)

    def labelled(self, method: str) -> Iterator[tuple[Flat, Any]]:
        """Yields (flat inputs, targets) of each batch.

        Raises:
            CalibrationError: a batch does not fit the captured call, or has no targets.
        """
        for index, batch in enumerate(self.batches):
            yield self._flat(batch, index), need_targets(batch, index, method)

    def _flat(self, batch: Batch, index: int) -> Flat:
        try:
            leaves = self.captured.call.flatten(batch.args, batch.kwargs)
        except (TypeError, ShapeError) as error:
            raise CalibrationError(f"calibration batch {index} does not fit the captured model: {error}") from error
        return leaves

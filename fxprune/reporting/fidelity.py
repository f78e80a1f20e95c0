"""Fidelity: how much of the dense model's outputs is left in a pruned model's, on calibration data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from fxprune._base.modes import lent
from fxprune.data.batch import Batch
from fxprune.data.calls import tensors_of


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How close two models' outputs are.

    Attributes:
        explained: ``1 - sum |a - b|^2 / sum |a - mean of a|^2`` of the dense outputs a and the pruned b,
            averaged over the outputs that vary: 1 where they are the same, 0 where b is no better than a constant.
            NaN if b is not finite or of other sizes than a (boxes that are found, say), or no output varies.
        agreement: the share of samples for which the largest of the class scores is the same one; None if the
            first output is no ``[samples, classes]`` and there are no ``logits``, or sizes differ.
    """

    explained: float
    agreement: float | None


@dataclass(slots=True)
class Reference:
    """A dense model's outputs batch by batch, kept up to a number of bytes and computed again beyond.

    An output is kept with its batch: data may come in another order each time.

    Attributes:
        model: the dense model.
        batches: calibration batches.
        memory_limit: bytes of batches and outputs that are kept.
    """

    model: nn.Module
    batches: Iterable[Batch]
    memory_limit: int
    _kept: dict[int, tuple[Batch, Any]] = field(default_factory=dict)
    _bytes: int = 0

    def of(self, pruned: nn.Module) -> Fidelity:
        """Returns how close a pruned model comes."""
        sums: dict[int, _Sums] = {}
        same, samples = 0, 0
        with torch.no_grad():
            for batch, dense in self._outputs():
                with lent(pruned, batch.args, batch.kwargs):
                    result = pruned(*batch.args, **batch.kwargs)
                for place, (a, b) in enumerate(zip_longest(_floats(dense), _floats(result))):
                    if a is None or b is None or a.shape != b.shape:
                        return Fidelity(math.nan, None)
                    if a.numel():
                        sums.setdefault(place, _Sums()).add(a.to(b.device), b)
                first, second = _scores(dense), _scores(result)
                if first is not None and second is not None:
                    chosen = first.argmax(-1).to(second.device)
                    same += int((chosen == second.argmax(-1)).sum())
                    samples += chosen.numel()
        parts = [share for part in sums.values() if (share := part.explained()) is not None]
        return Fidelity(sum(parts) / len(parts) if parts else math.nan, same / samples if samples else None)

    def _outputs(self) -> Iterator[tuple[Batch, Any]]:
        for index, batch in enumerate(self.batches):
            entry = self._kept.get(index)
            if entry is None:
                with lent(self.model, batch.args, batch.kwargs):
                    entry = batch, self.model(*batch.args, **batch.kwargs)
                size = sum(x.nbytes for x in tensors_of((batch.args, batch.kwargs, batch.targets, entry[1])))
                if self._bytes + size <= self.memory_limit:
                    self._bytes += size
                    self._kept[index] = entry
            yield entry


@dataclass(slots=True)
class _Sums:
    """Running sums over one output. Its mean is that of each coordinate; of all values if sizes vary."""

    error: float = 0.0
    squares: float = 0.0
    samples: int = 0
    values: int = 0
    whole: float = 0.0
    totals: Tensor = field(default_factory=lambda: torch.zeros(()))  # of each coordinate
    varying: bool = False

    def add(self, dense: Tensor, pruned: Tensor) -> None:
        a, b = dense.double(), pruned.double()
        rows = a.reshape(len(a), -1) if a.ndim > 1 else a.reshape(-1, 1)
        here = rows.sum(0)
        self.varying |= self.samples > 0 and self.totals.shape != here.shape
        self.totals = here if self.varying or not self.samples else self.totals + here
        self.error += float((a - b).square().sum())
        self.squares += float(rows.square().sum())
        self.whole += float(here.sum())
        self.samples += len(rows)
        self.values += rows.numel()

    def explained(self) -> float | None:
        """Returns None where the dense output does not vary."""
        if not math.isfinite(self.error):
            return math.nan
        mean = self.whole**2 / self.values if self.varying else float(self.totals.square().sum()) / self.samples
        spread = self.squares - mean
        return 1 - self.error / spread if spread > 1e-12 * self.squares else None


def _floats(outputs: Any) -> list[Tensor]:
    return [x for x in tensors_of(outputs) if x.is_floating_point()]


def _scores(outputs: Any) -> Tensor | None:
    """Returns the class scores among a model's outputs, ``[..., classes]``."""
    named = outputs.get("logits") if isinstance(outputs, dict) else getattr(outputs, "logits", None)
    if isinstance(named, Tensor) and named.ndim > 1 and named.shape[-1] > 1:
        return named
    first = next(iter(_floats(outputs)), None)
    return first if first is not None and first.ndim == 2 and first.shape[1] > 1 else None

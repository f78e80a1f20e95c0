"""What a training run did, epoch by epoch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fxprune._base import untrusted
from fxprune._base.errors import PlanError


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass through the data.

    Attributes:
        number: counted from 1.
        loss: the mean over the pass' samples, as trained on: with label smoothing and distillation.
        metrics: on the validation data after the pass, by name; empty without such data.
        lr: the learning rate of the pass' last step.
        seconds: of the pass and its validation.
    """

    number: int
    loss: float
    metrics: Mapping[str, float]
    lr: float
    seconds: float


@dataclass(frozen=True, slots=True)
class History:
    """A training run; ``str()`` is a table of its epochs.

    Attributes:
        before: the metrics before the first step.
        epochs: in order, those of an earlier, resumed run included.
        resumed_at: how many of them came from a checkpoint.
    """

    before: Mapping[str, float]
    epochs: tuple[Epoch, ...]
    resumed_at: int = 0

    def __str__(self) -> str:
        from tabulate import tabulate

        names = list(self.before)
        rows: list[list[Any]] = [["before", None, *self.before.values(), None, None]] if names else []
        for epoch in self.epochs:
            values = [epoch.metrics.get(name) for name in names]
            rows.append([epoch.number, epoch.loss, *values, f"{epoch.lr:.3g}", f"{epoch.seconds:.1f}"])
        headers = ("epoch", "training loss", *(f"validation {name}" for name in names), "lr", "seconds")
        formats = ("", ".4f", *(".4f" for _ in names), "", "")
        return tabulate(rows, headers, tablefmt="simple", floatfmt=formats, disable_numparse=[0])

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON, which has no number that is not finite: None instead."""
        return {
            "before": _plain(self.before),
            "epochs": [{**dataclasses.asdict(epoch), "metrics": _plain(epoch.metrics)} for epoch in self.epochs],
        }

    @classmethod
    def from_dict(cls, data: Any, where: str) -> History:
        """Reads what ``to_dict`` returned; all of its epochs count as resumed.

        Raises:
            PlanError: it is something else.
        """
        epoch = partial(untrusted.sequence_of, read=_epoch)
        found = untrusted.fields_of(data, where, {"before": _metrics, "epochs": epoch})
        epochs = found["epochs"]
        if [epoch.number for epoch in epochs] != [*range(1, len(epochs) + 1)]:
            raise PlanError(f"{where}: epochs: expected them numbered from 1: is the file whole?")
        return cls(found["before"], epochs, len(epochs))


def _plain(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _metrics(value: Any, where: str) -> dict[str, float]:
    found = untrusted.mapping_of(value, where, untrusted.maybe(untrusted.real))
    return {name: math.nan if value is None else value for name, value in found.items()}


def _epoch(row: Any, where: str) -> Epoch:
    numbers = dict.fromkeys(("loss", "lr", "seconds"), untrusted.real)
    return Epoch(**untrusted.fields_of(row, where, {"number": untrusted.integer, "metrics": _metrics, **numbers}))

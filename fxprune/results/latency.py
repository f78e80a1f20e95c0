"""The record of a latency: what was asked for, predicted and measured, and under which circumstances."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fxprune._base import untrusted
from fxprune.results.tables import in_ms
from fxprune.runtimes.setting import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """The latency of a pruned model beside that of the original, in milliseconds a call.

    Attributes:
        dense_ms: of the original, measured in turns with the pruned model.
        measured_ms: of the pruned model.
        predicted_ms: what the cost table had predicted for it before any model of its shape was measured.
        limit_ms: what it may take; of a share, that share of ``dense_ms``.
        backend: what ran the models, by its name.
        batch_size: samples a call.
        device: where.
        threads: that an operator may use on the CPU.
    """

    dense_ms: float
    measured_ms: float
    predicted_ms: float
    limit_ms: float
    backend: str
    batch_size: int
    device: str
    threads: int

    @property
    def setting(self) -> Setting:
        """Under which circumstances it was measured."""
        return Setting(self.device, self.batch_size, self.backend, self.threads)

    @property
    def met(self) -> bool:
        """Whether the measured latency is within the limit."""
        return self.measured_ms <= self.limit_ms

    @property
    def speedup(self) -> float:
        """The dense model's time by the pruned one's."""
        return self.dense_ms / self.measured_ms

    def __str__(self) -> str:
        """Returns one line: before, after, predicted, and whether the limit is met."""
        over = f"over by {in_ms(self.measured_ms - self.limit_ms)} ({self.measured_ms / self.limit_ms - 1:.1%})"
        return (
            f"latency: {in_ms(self.dense_ms)} -> {in_ms(self.measured_ms)} (speed-up {self.speedup:.2f} x), "
            f"predicted {in_ms(self.predicted_ms)}; limit {in_ms(self.limit_ms)}: {'met' if self.met else over}; "
            f"{self.setting}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any, where: str) -> Latency:
        """Returns what ``to_dict`` gave.

        Raises:
            PlanError: the data are damaged; says where.
        """
        return cls(**untrusted.fields_of(data, where, _READERS))


def _positive(value: Any, where: str) -> float:
    if untrusted.number(value, where) <= 0:
        raise untrusted.refusal(value, where, "a number above 0")
    return float(value)


_READERS: dict[str, untrusted.Reader[Any]] = {
    **dict.fromkeys(("dense_ms", "measured_ms", "predicted_ms", "limit_ms"), _positive),
    **dict.fromkeys(("backend", "device"), untrusted.string),
    **dict.fromkeys(("batch_size", "threads"), untrusted.integer),
}

"""Fidelity: how close a pruned model's outputs are to the dense model's, on which data, and what would bring them closer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

from fxprune._base import untrusted
from fxprune._base.moved import filled_in

#: What a result is called by, from which value on: of class scores the agreement, of next-token scores how many times the dense
#: model's perplexity there may be, of other outputs the share of the variance.
SCALE = {"perplexity": (1.05, 1.25), "agreement": (0.95, 0.80), "explained": (0.98, 0.80)}

#: An agreement with a larger standard error, as of fewer than ten samples, tells less than the variance does.
CERTAIN = 0.1

#: What is said of the batches that were judged, by what recovery has seen of them.
DATA = {
    "held out": " held out from recovery",
    "unfitted": ", to which nothing was fitted",
    "alone": " on the calibration batch itself; give several for a figure on data that recovery has not seen",
    "seen": " that recovery has seen; holdout=0.1 holds some out",
    "shuffled": " that recovery may have seen, as the data come in another order each time",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """How close two models' outputs are.

    Attributes:
        explained: ``1 - sum |a - b|^2 / sum |a - mean of a|^2`` of the dense outputs a and the pruned b, averaged over the
            outputs that vary: 1 where they are the same, 0 where b is no better than a constant. NaN if b is not finite; None if
            nothing was compared, or no output varies.
        error: ``sqrt(sum |a - b|^2 / sum |a|^2)``, averaged over the outputs; NaN if b is not finite, None if nothing was compared.
        agreement: the share of samples, or of their places, for which the largest of the class scores is the same one; None
            without class scores.
        deviation: the standard error of that.
        divergence: the mean Kullback-Leibler divergence of the pruned class scores from the dense ones, in nats.
        perplexity: of the next token, (dense, pruned), where the scores are for it and the data have tokens.
        samples: that were judged.
        batches: that they came in.
        data: what recovery has seen of them, a key of `DATA`; empty if that is not known.
        why: why there are no figures; empty where there are.
        advice: what has not been tried yet and would bring the outputs closer.
    """

    explained: float | None = None
    error: float | None = None
    agreement: float | None = None
    deviation: float | None = None
    divergence: float | None = None
    perplexity: tuple[float, float] | None = None
    samples: int = 0
    batches: int = 0
    data: str = ""
    why: str = ""
    advice: tuple[str, ...] = ()

    __setstate__ = filled_in

    @property
    def held_out(self) -> bool:
        """Whether recovery has not seen the data."""
        return self.data in ("held out", "unfitted")

    @property
    def level(self) -> str:
        """``"good"``, ``"fair"`` or ``"poor"`` by `SCALE`; ``"unknown"`` where there is no figure."""
        if self.why or self.error is None:
            return "unknown"
        if math.isnan(self.error):
            return "poor"
        if self.perplexity is not None:
            dense, pruned = self.perplexity
            good, fair = (pruned <= bound * dense for bound in SCALE["perplexity"])
        elif self.agreement is not None and self._certain:
            good, fair = (self.agreement >= bound for bound in SCALE["agreement"])
        elif self.explained is not None:
            good, fair = (self.explained >= bound for bound in SCALE["explained"])
        else:
            return "unknown"
        return "good" if good else "fair" if fair else "poor"

    @property
    def _certain(self) -> bool:
        """Whether there are samples enough for the agreement to tell."""
        return self.deviation is None or self.deviation <= CERTAIN

    def __str__(self) -> str:
        """Returns the level, what it was found by, and what may be done about it, in a line."""
        return f"{self.sentence}: {self.hint}" if self.hint else self.sentence

    @property
    def sentence(self) -> str:
        """The level, and what it was found by; or why it is not known."""
        return self.why or f"{self.level}: {self._found()}{DATA.get(self.data, '')}"

    @property
    def hint(self) -> str:
        """What may be done about it; empty where nothing need be."""
        if self.level not in ("fair", "poor"):
            return ""
        *first, last = self.advice or ("",)
        return f"{', '.join(first)}{', or ' if first else ''}{last}"

    def _found(self) -> str:
        samples = f"{self.samples:,} sample{'' if self.samples == 1 else 's'}"
        if self.error is None or math.isnan(self.error):
            return f"the outputs are not finite where the dense model's are, on {samples}"
        if self.perplexity is not None:
            dense, pruned = self.perplexity
            return f"perplexity {dense:.4g} -> {pruned:.4g} ({_times(dense, pruned)}) on {samples}"
        if self.agreement is not None and (self._certain or self.explained is None):
            around = "" if self.deviation is None else f" (+- {100 * self.deviation:.2g})"
            return f"agrees with the dense model on {_percent(self.agreement)} % of {samples}{around}"
        if self.explained is None:
            return f"the dense outputs do not vary, relative error {self.error:.2g}, on {samples}"
        return f"explains {_percent(self.explained)} % of the variance of the dense outputs, on {samples}"

    def details(self) -> dict[str, str]:
        """Returns every figure there is as text, by its name."""
        found = {
            "agreement": None if self.agreement is None else f"{_percent(self.agreement)} %",
            "explained variance": None if self.explained is None else f"{self.explained:.4f}",
            "relative error": None if self.error is None else f"{self.error:.2g}",
            "divergence": None if self.divergence is None else f"{self.divergence:.2g} nats",
            "perplexity": self.perplexity and "{:.4g} -> {:.4g}".format(*self.perplexity),
        }
        return {name: text for name, text in found.items() if text}

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON data; a number that is not finite becomes text."""
        numbers = ("explained", "error", "agreement", "deviation", "divergence")
        return {
            **{name: writable(getattr(self, name)) for name in numbers},
            "perplexity": self.perplexity and [writable(value) for value in self.perplexity],
            **{name: getattr(self, name) for name in ("samples", "batches", "data", "why")},
            "advice": list(self.advice),
            "level": self.level,
        }

    @classmethod
    def from_dict(cls, data: Any, where: str) -> Fidelity:
        """Returns what ``to_dict`` gave; the level is found again.

        Raises:
            PlanError: the data are damaged; says where.
        """
        found = untrusted.fields_of(data, where, _READERS)
        del found["level"]
        return cls(**found)


def scale_text() -> str:
    """Returns the scale in words."""
    (good, fair), (same, most), (much, some) = (SCALE[name] for name in ("perplexity", "agreement", "explained"))
    return (
        f"Good, or fair, is an agreement of at least {_percent(same)} % ({_percent(most)} %); of a language model a perplexity of at most "
        f"{good:g} ({fair:g}) times the dense one's; without class scores {_percent(much)} % ({_percent(some)} %) of the variance."
    )


def writable(value: float | None) -> float | str | None:
    """Returns a number as JSON has it; one that is not finite as text."""
    return str(value) if value is not None and not math.isfinite(value) else value


def read_odd(value: Any, where: str) -> float:
    """Returns the number that `writable` was given."""
    return float(value) if value in ("nan", "inf", "-inf") else untrusted.real(value, where)


def _percent(share: float) -> str:
    return f"{100 * share:.3g}"


def _times(dense: float, pruned: float) -> str:
    return f"{pruned / dense:.2f} x" if dense else "-"


_READERS: dict[str, untrusted.Reader[Any]] = {
    **dict.fromkeys(("explained", "error", "agreement", "deviation", "divergence"), untrusted.maybe(read_odd)),
    "perplexity": untrusted.maybe(lambda value, where: untrusted.row_of(value, where, read_odd, read_odd)),
    **dict.fromkeys(("samples", "batches"), untrusted.integer),
    "data": partial(untrusted.one_of, ("", *DATA)),
    "why": untrusted.string,
    "advice": untrusted.texts,
    "level": untrusted.string,
}

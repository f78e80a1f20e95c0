"""The points of a sweep, and which of them are worth having."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from os import PathLike
from typing import Any

from fxprune._base.errors import BudgetError
from fxprune._base.files import write_text
from fxprune._base.moved import filled_in
from fxprune._base.shown import html_summary, text_summary
from fxprune.budget.budget import Budget
from fxprune.budget.cost import Cost
from fxprune.results.record import Report
from fxprune.results.tables import in_ms, percent, speedup_text, table

#: What the quality is called where no ``evaluate`` is given.
FIDELITY = "fidelity"

_SCHEMA = 1

#: Columns of text.
_WORDS = {"method", "budget", "pareto", "note"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One budget with one method.

    Attributes:
        method: the criterion's name.
        budget: what was asked for.
        cost: parameters, MACs of one sample, and bytes that are left; None if the budget is out of reach.
        fidelity: the share of the dense outputs' variance that is left (`fxprune.reporting.fidelity`).
        agreement: the share of samples for which the dense model's first choice is still the first; None if
            the outputs are no class scores.
        value: what ``evaluate`` gave.
        latency_ms: milliseconds of a call with the first calibration batch, if it was measured.
        verified: whether it equals its masked twin, as `Report.verified` says.
        seconds: that this point took, without what it shares with others.
        why: why there is no model; or, where ``value`` is NaN, no value.
        report: the whole report, with the plan.
        deviation: the standard error of the agreement.
        latency_error_ms: that of the latency, in milliseconds.
    """

    method: str
    budget: Budget
    cost: Cost | None = None
    fidelity: float | None = None
    agreement: float | None = None
    value: float | None = None
    latency_ms: float | None = None
    verified: bool | None = None
    seconds: float = 0.0
    why: str = ""
    report: Report | None = field(default=None, repr=False, compare=False)
    deviation: float | None = None
    latency_error_ms: float | None = None

    __setstate__ = filled_in

    @property
    def quality(self) -> float | None:
        """What points are compared by: ``value`` if there is one, else ``fidelity``."""
        return self.fidelity if self.value is None else self.value


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Sweep:
    """What `fxprune.sweep` found: ``print`` it for a table, ``to_dict()`` is JSON data, ``to_html()`` a page.

    Attributes:
        points: one for each method and budget, in the order in which they were given.
        before: cost of the dense model.
        dense_value: what ``evaluate`` gave for the dense model.
        dense_ms: milliseconds of a call of the dense model.
        quality_name: what ``Point.quality`` is.
    """

    points: tuple[Point, ...]
    before: Cost
    dense_value: float | None = None
    dense_ms: float | None = None
    quality_name: str = FIDELITY

    @property
    def pareto(self) -> tuple[Point, ...]:
        """The points that no other one beats: nowhere behind by more than noise, and somewhere ahead by more.

        Noise is the standard error of the difference: of latencies, and of agreements where points are compared by fidelity, which
        then is no lead unless the agreement leads too. What ``evaluate`` gives, parameters and MACs are taken as exact.
        """
        there = [point for point in self.points if _is_there(point)]
        return tuple(point for point in there if not any(_beats(other, point) for other in there))

    def best(
        self, *, params: float | int | None = None, macs: float | int | None = None, latency_ms: float | None = None
    ) -> Point:
        """Returns the point of the highest quality within bounds; of equal ones the smallest.

        Args:
            params: most parameters; a float is a share of the dense model's, an int is absolute.
            macs: most MACs, likewise.
            latency_ms: most milliseconds.

        Raises:
            BudgetError: no point lies within them, or there is no latency to compare.
        """
        if latency_ms is not None and all(point.latency_ms is None for point in self.points):
            raise BudgetError("best: expected a sweep with latency=True to choose by latency_ms, got one without")
        limits = Budget(params=params, macs=macs).limits(self.before) if (params, macs) != (None, None) else {}
        good = [
            point
            for point in self.points
            if point.cost is not None
            and _is_there(point)
            and all(point.cost[i] <= limit for i, limit in limits.items())
            and (latency_ms is None or (point.latency_ms is not None and point.latency_ms <= latency_ms))
        ]
        if not good:
            least = min((p.cost.params for p in self.points if p.cost is not None), default=None)
            small = "no point has a model" if least is None else f"the smallest point has {least:,} parameters"
            raise BudgetError(f"best: no point lies within these bounds; {small}: sweep smaller budgets")
        return min(good, key=lambda p: (-(p.quality or 0.0), p.cost or self.before))

    def __str__(self) -> str:
        """Returns the table; a star marks the points that no other one beats."""
        heads, rows = self.table()
        return "\n".join([table(self._title(), rows, heads, words=_WORDS), *self.failures])

    def __repr__(self) -> str:
        """Returns a line for each point."""
        heads, rows = self.table()
        lines = (", ".join(f"{head} {cell}" for head, cell in zip(heads, row, strict=True) if cell) for row in rows)
        return text_summary(self._title(), [*lines, *self.failures])

    def _repr_html_(self) -> str:
        return html_summary(self._title(), [("no model or no value", line) for line in self.failures], *self.table())

    def _title(self) -> str:
        size = f"{self.before.params:,} parameters, {self.before.macs:,} MACs dense"
        title = f"fxprune: {len(self.points)} points, {size}"
        if self.dense_value is not None:
            title += f", {self.quality_name} {_shown(self.dense_value)}"
        if self.dense_ms is not None:
            title += f", {in_ms(self.dense_ms)}"
        return title

    @property
    def failures(self) -> tuple[str, ...]:
        """Why there is no model or no value, a line for each point without one."""
        return tuple(f"{point.method}, {budget_text(point.budget)}: {point.why}" for point in self.points if point.why)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Returns heads and rows as text; columns that would be empty are left out."""
        best = {id(point) for point in self.pareto}
        columns: list[tuple[str, Callable[[Point], str], bool]] = [
            ("method", lambda p: p.method, True),
            ("budget", lambda p: budget_text(p.budget), True),
            ("parameters", lambda p: "" if p.cost is None else f"{p.cost.params:,}", True),
            ("kept", lambda p: "" if p.cost is None else percent(self.before.params, p.cost.params), True),
            ("MACs kept", lambda p: "" if p.cost is None else percent(self.before.macs, p.cost.macs), True),
            ("ms", latency_text, self.dense_ms is not None),
            ("speed-up", lambda p: speedup_text(self.dense_ms, p.latency_ms), self.dense_ms is not None),
            (self.quality_name, lambda p: _shown(p.value), self.quality_name != FIDELITY),
            ("fidelity", lambda p: _shown(p.fidelity), True),
            (
                "agreement",
                lambda p: _shown(p.agreement) + _around(p.deviation),
                any(p.agreement is not None for p in self.points),
            ),
            ("pareto", lambda p: "*" if id(p) in best else "", True),
            (
                "note",
                lambda p: p.why and ("no model" if p.cost is None else "no value"),
                any(p.why for p in self.points),
            ),
        ]
        shown = [(head, cell) for head, cell, there in columns if there]
        return [head for head, _ in shown], [[cell(point) for _, cell in shown] for point in self.points]

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the reports as JSON data; what is not finite becomes None."""
        best = {id(point) for point in self.pareto}
        numbers = ("fidelity", "agreement", "deviation", "value", "latency_ms", "latency_error_ms", "seconds")
        return {
            "schema": _SCHEMA,
            "before": self.before._asdict(),
            "quality": self.quality_name,
            "dense_value": _finite(self.dense_value),
            "dense_ms": _finite(self.dense_ms),
            "points": [
                {
                    "method": point.method,
                    "budget": {key: value for key, value in asdict(point.budget).items() if value is not None},
                    "cost": None if point.cost is None else point.cost._asdict(),
                    **{key: _finite(getattr(point, key)) for key in numbers},
                    "verified": point.verified,
                    "why": point.why,
                    "pareto": id(point) in best,
                }
                for point in self.points
            ],
        }

    def to_html(self) -> str:
        """Returns a self-contained page with the plots and the table.

        Raises:
            MissingExtraError: matplotlib or jinja2 is not installed.
        """
        from fxprune.reporting.html.sweep_page import sweep_page

        return sweep_page(self)

    def write(self, path: str | PathLike[str]) -> None:
        """Writes the page to a file, whole or not at all.

        Raises:
            MissingExtraError: matplotlib or jinja2 is not installed.
            OSError: it cannot be written.
        """
        write_text(path, self.to_html())


def _is_there(point: Point) -> bool:
    return point.cost is not None and point.quality is not None and not math.isnan(point.quality)


def _beats(one: Point, other: Point) -> bool:
    leads = _leads(one, other)
    return all(lead >= 0 for lead in leads) and any(lead > 0 for lead in leads)


def _leads(one: Point, other: Point) -> list[float]:
    """Returns by how much one point is ahead, in quality, parameters, MACs and milliseconds; 0 within noise."""
    mine, theirs = one.cost or Cost(0, 0, 0), other.cost or Cost(0, 0, 0)
    leads = [_better(one, other), float(theirs.params - mine.params), float(theirs.macs - mine.macs)]
    if one.latency_ms is not None and other.latency_ms is not None:
        leads.append(_beyond(other.latency_ms - one.latency_ms, one.latency_error_ms, other.latency_error_ms))
    return leads


def _better(one: Point, other: Point) -> float:
    lead = (one.quality or 0.0) - (other.quality or 0.0)
    if one.value is not None or one.agreement is None or other.agreement is None:
        return lead
    agreed = _beyond(one.agreement - other.agreement, one.deviation, other.deviation)
    return lead if agreed * lead > 0 else 0.0


def _beyond(difference: float, *errors: float | None) -> float:
    """Returns a difference that is larger than its standard error, else 0."""
    return difference if abs(difference) > math.hypot(*(error or 0.0 for error in errors)) else 0.0


def budget_text(budget: Budget) -> str:
    """Returns what a budget asks for, in words."""
    names = {"params": "parameters", "macs": "MACs", "latency": "latency"}
    bounds = [(label, bound) for name, label in names.items() if (bound := getattr(budget, name)) is not None]
    parts = [f"{100 * x:.4g} % {label}" if isinstance(x, float) else f"{x:,} {label}" for label, x in bounds]
    return ", ".join([*parts, *([] if budget.latency_ms is None else [f"{budget.latency_ms:g} ms"])])


def latency_text(point: Point) -> str:
    """Returns a point's milliseconds with their standard error; empty if they were not measured."""
    return "" if point.latency_ms is None else f"{point.latency_ms:.3g}{_around(point.latency_error_ms)}"


def _around(error: float | None) -> str:
    return "" if error is None else f" +- {error:.2g}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"

"""Predict: the latency of a model with some channels gone, from the cost table, calibrated against whole models."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fxprune.algebra.channels import Mask
from fxprune.budget.solver import Floats
from fxprune.latency.layout import Layout
from fxprune.latency.table import Table

#: A channel costs at least this share of the median: a layer whose time did not change by chance is not priceless.
FLOOR = 0.05

#: What a coordinate costs is read off between the full width and this share of it.
CHORD = 0.25


@dataclass(frozen=True, slots=True, eq=False)
class LatencyModel:
    """What the cost table says about a captured model; the table holds all its operations."""

    layout: Layout
    table: Table

    def sum(self, removed: Mask) -> float:
        """Returns the milliseconds of all layers that are left without the flagged channels, ``[channels]``, added up.

        They never grow with what is removed.
        """
        counts = self.layout.counts(removed)
        return sum(
            self.table.ms(step.operation, tuple(counts[n] for n in step.factors)) for step in self.layout.live(removed)
        )

    def channel_costs(self) -> Floats:
        """Returns the milliseconds that each channel id costs in the full model, ``[channels]``, on average down to a quarter."""
        costs = np.zeros(len(self.layout.coupling.channels))
        for labels, slope in zip(self.layout.factors, self._slopes(), strict=True):
            np.add.at(costs, labels, slope)
        costs[0] = 0.0
        units = costs[self.layout.coupling.units]
        least = FLOOR * float(np.median(units[units > 0])) if (units > 0).any() else 1.0
        return costs.clip(min=least)

    def _slopes(self) -> Floats:
        slopes = np.zeros(len(self.layout.factors))
        for step in self.layout.steps:
            full = step.operation.widths
            for k, number in enumerate(step.factors):
                fewer = max(1, int(CHORD * full[k]))
                if fewer < full[k]:
                    less = (*full[:k], fewer, *full[k + 1 :])
                    gain = self.table.ms(step.operation, full) - self.table.ms(step.operation, less)
                    slopes[number] += gain / (full[k] - fewer)
        return slopes


@dataclass(slots=True)
class Calibration:
    """From the table's sum to the whole model's latency: piecewise linear through what was measured, from nothing on.

    Attributes:
        points: sum of the table -> milliseconds measured of a whole model.
    """

    points: dict[float, float] = field(default_factory=dict)

    def add(self, total: float, ms: float) -> None:
        """Notes what a whole model took."""
        self.points[total] = (self.points.get(total, ms) + ms) / 2

    def ms(self, total: float) -> float:
        """Returns the latency to expect; never less for a larger sum, and the sum itself if nothing was measured."""
        if not self.points:
            return total
        sums = np.array(sorted(self.points))
        times = np.maximum.accumulate([self.points[s] for s in sums.tolist()])
        if total > sums[-1]:
            return float(times[-1] * total / max(sums[-1], 1e-12))
        return float(np.interp(total, np.append(0.0, sums), np.append(0.0, times)))


@dataclass(frozen=True, slots=True)
class LatencyBound:
    """A bound on the predicted latency, as `fxprune.budget.solver.solve` takes it.

    Attributes:
        model: what the table says.
        calibration: what whole models said.
        limit_ms: what the model may take.
    """

    model: LatencyModel
    calibration: Calibration
    limit_ms: float

    def predicted(self, removed: Mask) -> float:
        """Returns the milliseconds to expect once the flagged channels, ``[channels]``, are gone."""
        return self.calibration.ms(self.model.sum(removed))

    def fits(self, removed: Mask) -> bool:
        """Returns whether the model without the flagged channels, ``[channels]``, is within the limit."""
        return self.predicted(removed) <= self.limit_ms

    def costs(self) -> Floats:
        """Returns what each channel id costs, ``[channels]``, for the ranking."""
        return self.model.channel_costs()

    def refusal(self, smallest: Mask) -> str:
        """Returns why the limit is out of reach: the smallest model, without the flagged ``[channels]``, exceeds it."""
        full, least = max(self.predicted(np.zeros_like(smallest)), 1e-12), self.predicted(smallest)
        return (
            f"a latency of {self.limit_ms:.4g} ms ({self.limit_ms / full:.4f}) cannot be reached: the smallest is "
            f"predicted to take {least:.4g} ms ({least / full:.4f})"
        )

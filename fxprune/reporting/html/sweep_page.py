"""The page of a sweep."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fxprune.reporting.html.render import rendered
from fxprune.reporting.html.rows import table
from fxprune.reporting.pareto import latency_text
from fxprune.results.tables import counted, percent, speedup_text

if TYPE_CHECKING:
    from fxprune.reporting.pareto import Point, Sweep


def sweep_page(sweep: Sweep) -> str:
    """Returns a sweep as one HTML page that needs no other file and no network.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    return rendered("sweep.html.j2", lambda: _contents(sweep))


def _contents(sweep: Sweep) -> dict[str, Any]:
    costs: list[tuple[str, str, Callable[[Point], float], float | None]] = [
        ("params", "parameters", lambda p: p.cost.params if p.cost else math.nan, sweep.before.params),
        ("macs", "MACs per sample", lambda p: p.cost.macs if p.cost else math.nan, sweep.before.macs),
    ]
    if sweep.dense_ms is not None:
        costs.append(("latency", "milliseconds a call", lambda p: p.latency_ms or math.nan, sweep.dense_ms))
    heads, rows = sweep.table()
    return {
        "sweep": sweep,
        "best": [_in_words(sweep, p) for p in sweep.pareto],
        "methods": list(dict.fromkeys(p.method for p in sweep.points)),
        "plots": [_plot(sweep, *cost) for cost in costs],
        "table": table("All points", heads, [["yes" if cell == "*" else cell for cell in row] for row in rows]),
    }


def _in_words(sweep: Sweep, point: Point) -> str:
    cost = point.cost or sweep.before
    shares = f"{percent(sweep.before.params, cost.params)} of the parameters, {percent(sweep.before.macs, cost.macs)} of the MACs"
    timed = (
        ""
        if point.latency_ms is None
        else f"{latency_text(point)} ms, speed-up {speedup_text(sweep.dense_ms, point.latency_ms)}, "
    )
    return f"{point.method}: {shares}, {timed}{sweep.quality_name} {point.quality:.4f}"


def _plot(sweep: Sweep, name: str, label: str, cost: Callable[[Point], float], dense: float | None) -> dict[str, Any]:
    from fxprune.reporting.html import charts

    good = [p for p in sweep.points if p.quality is not None and math.isfinite(p.quality) and cost(p) == cost(p)]
    series: dict[str, list[tuple[float, float]]] = {}
    for point in good:
        series.setdefault(point.method, []).append((cost(point), point.quality or 0.0))
    best = [(cost(p), p.quality or 0.0) for p in sweep.pareto if p in good]
    front: list[tuple[float, float]] = []
    for place in sorted(best, key=lambda place: (place[0], -place[1])):
        if not front or place[1] > front[-1][1]:
            front.append(place)
    at = None if dense is None else (dense, 1.0 if sweep.dense_value is None else sweep.dense_value)
    title = f"{sweep.quality_name.capitalize()} against {label}"
    text = f"{len(good)} points of {counted(len(series), 'method')}; higher and further left is better."
    drawn = charts.chart(name, title, text, charts.scatter, series, front, at, (label, sweep.quality_name))
    return {"title": title, "text": text, "chart": drawn}

"""The sections of a report's page that have charts: scores, and where parameters, MACs and time go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from fxprune.reporting.html import charts
from fxprune.reporting.html.charts import chart
from fxprune.reporting.html.rows import Table, table
from fxprune.results.alike import folded
from fxprune.results.record import GroupRow, LayerRow, Report
from fxprune.results.scores import GroupScores, ScoreSummary
from fxprune.results.tables import counted, percent, share

#: The layers that a cost chart shows; the table has more.
LAYERS = 20

#: Up to so many layers have a row each in the table.
LISTED = 150

#: Up to so many groups show their scores side by side; of more each has its own beside its layers.
STRIPS = 16

#: If the costliest layers have less than this share together, the chart takes alike layers together instead.
MOST = 0.75

_KEPT_REMOVED_CUT = (("after", "stay"), ("removed", "go"), ("cut", "the cut"))


def lost(groups: Sequence[GroupRow]) -> str:
    """Returns how many groups lose units, and which one most."""
    losing = [row for row in groups if row.after < row.before]
    text = f"{len(losing)} of {counted(len(groups), 'group')} lose units."
    if not losing:
        return text
    least = min(losing, key=lambda row: row.after / row.before)
    return (
        f"{text} The narrowest is left with {percent(least.before, least.after)}: {least.name}, "
        f"{least.before} to {least.after}."
    )


def scores(found: Report) -> dict[str, Any] | None:
    """Returns how the units rank and where the cut lies; None if nothing was ranked."""
    summary = found.scores
    if summary is None or not summary.groups or not any((*summary.kept, *summary.removed)):
        return None
    text = _ranked(summary)
    spans = (f"{low:.4g} to {high:.4g}" for low, high in pairwise(summary.edges))
    bins = zip(spans, summary.kept, summary.removed, strict=True)
    by_score = "How many units have which score, and where the cut is"
    return {
        "text": text,
        "legend": _KEPT_REMOVED_CUT if any(summary.removed) else _KEPT_REMOVED_CUT[:1],
        "overall": chart("distribution", by_score, text, charts.histogram, summary),
        "overall_table": table("Units by score", (summary.unit, "stay", "go"), bins),
        "groups": _by_group(summary, text) if len(summary.groups) <= STRIPS else None,
    }


def _by_group(summary: ScoreSummary, text: str) -> dict[str, Any]:
    heads = ("group", "stay", "go", "lowest bin from", "highest bin to", "cut")[: 5 if summary.cut is not None else 6]
    rows = [_cells(summary, group)[: len(heads)] for group in summary.groups]
    title = "How the scores of every group are distributed"
    return {
        "chart": chart("strips", title, text, charts.strips, summary),
        "table": table("Units by group", heads, rows),
    }


def _ranked(summary: ScoreSummary) -> str:
    if summary.cut is None:
        own = "every group has a cut of its own" if any(summary.removed) else "nothing goes"
        return f"Ranked by {summary.unit}; {own}."
    text = f"Ranked by {summary.unit}, low goes first. The cut lies at {summary.cut:.3g}."
    below, above = summary.astray
    astray = [f"{counted(below, 'unit')} below it {'stays' if below == 1 else 'stay'}"] if below else []
    astray += [f"{counted(above, 'unit')} above it {'goes' if above == 1 else 'go'}"] if above else []
    why = "minimum widths, multiples, what goes together and the exact budget decide there"
    return f"{text} {' and '.join(astray)}: {why}." if astray else text


def _cells(summary: ScoreSummary, group: GroupScores) -> tuple[Any, ...]:
    low, high = summary.span(group)
    cut = "-" if group.cut is None else f"{group.cut:.4g}"
    return group.name, sum(group.kept), sum(group.removed), f"{low:.4g}", f"{high:.4g}", cut


def costs(found: Report) -> list[dict[str, Any]]:
    """Returns where parameters, MACs and the time of the compilation go; one table has both of every layer."""
    parts = []
    for key, name, unit in (("params", "Parameters", "parameters"), ("macs", "MACs", "MACs per sample")):
        rows = [(row.name, *getattr(row, key)) for row in found.layers if any(getattr(row, key))]
        if rows:
            parts.append(_cost(key, f"{name} by layer", unit, rows))
    if parts:
        parts[-1]["table"] = _layers(found.layers)
    if found.seconds:
        parts.append(_time(found.seconds))
    return parts


def _layers(rows: Sequence[LayerRow]) -> Table:
    """Returns parameters and MACs of every layer; of very many, those that differ in numbers alone together."""
    heads = ("layer", "parameters before", "after", "kept", "MACs before", "after", "kept")
    cells: list[tuple[Any, ...]] = []
    for name, places in folded([row.name for row in rows], LISTED):
        same = [rows[place] for place in places]
        params, macs = ([sum(getattr(row, key)[i] for row in same) for i in (0, 1)] for key in ("params", "macs"))
        label = f"{name} ({len(same)} layers)" if len(same) > 1 else name
        cells.append((label, *params, percent(*params), *macs, percent(*macs)))
    return table("Parameters and MACs by layer, front to back", heads, cells)


def _cost(key: str, title: str, unit: str, rows: Sequence[tuple[str, int, int]]) -> dict[str, Any]:
    top, text = _top(rows, unit)
    return {
        "title": title,
        "text": text,
        "legend": (("before", "before"), ("after", "after")),
        "chart": chart(key, title, text, charts.bars, top, unit),
        "table": None,
    }


def _time(seconds: Mapping[str, float]) -> dict[str, Any]:
    total, longest = sum(seconds.values()), max(seconds, key=seconds.__getitem__)
    text = f"{total:.2f} s in all; {longest} took {share(total, seconds[longest]):.0f} % of it."
    cells = [(stage, f"{value:.2f}") for stage, value in seconds.items()]
    return {
        "title": "Time of the compilation",
        "text": text,
        "legend": (),
        "chart": chart("seconds", "Seconds by stage", text, charts.stages, seconds),
        "table": table("Seconds by stage", ("stage", "seconds"), cells),
    }


def _top(rows: Sequence[tuple[str, int, int]], unit: str) -> tuple[list[tuple[str, int, int]], str]:
    """Returns the costliest layers; where many are alike, those that differ in numbers alone together."""
    total, left = sum(row[1] for row in rows), sum(row[2] for row in rows)
    shown = sorted(rows, key=lambda row: -row[1])[:LAYERS]
    what = f"{counted(len(rows), 'layer')}, costliest first"
    if sum(row[1] for row in shown) < MOST * total:
        together = [
            (name, sum(rows[place][1] for place in places), sum(rows[place][2] for place in places))
            for name, places in folded([row[0] for row in rows], LAYERS)
        ]
        shown = sorted(together, key=lambda row: -row[1])[:LAYERS]
        what = f"{counted(len(rows), 'layer')}, those that differ in numbers alone together, costliest first"
    first, before, after = shown[0]
    seen = share(total, sum(row[1] for row in shown))
    rest = "" if seen > 99.95 else f" The chart shows {seen:.1f} % of them, the table all."
    return shown, (
        f"{what}. {first} had {share(total, before):.1f} % of the {unit} and has "
        f"{share(left, after):.1f} % of what is left.{rest}"
    )

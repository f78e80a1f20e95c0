"""The sections of a report's page that have charts: widths, scores, and where parameters, MACs and time go."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from fxprune.reporting.html import charts
from fxprune.reporting.html.charts import chart
from fxprune.reporting.html.rows import table
from fxprune.results.record import GroupRow, Report
from fxprune.results.scores import GroupScores, ScoreSummary
from fxprune.results.tables import counted, percent, share

#: The layers that a cost chart shows; the table has all.
LAYERS = 20

#: If the costliest layers have less than this share together, the chart takes alike layers together instead.
MOST = 0.75

#: How kinds of unit are called on the page.
KINDS = {
    "channel": "Channels",
    "expert": "Experts",
    "head": "Heads",
    "kv_group": "Key and value heads",
    "head_dim": "Dimensions of heads",
    "block": "Blocks",
}

_DIGITS = re.compile(r"(?<![^._])\d+(?![^._])")

_KEPT_REMOVED_CUT = (("after", "stay"), ("removed", "go"), ("cut", "the cut"))


def widths(groups: Sequence[GroupRow]) -> dict[str, Any] | None:
    """Returns the widths before and after, a chart for each kind of unit; None without groups."""
    if not groups:
        return None
    touched = [row for row in groups if row.after < row.before]
    text = f"{len(touched)} of {counted(len(groups), 'group')} lose units."
    if touched:
        least = min(touched, key=lambda row: row.after / max(row.before, 1))
        text += (
            f" The narrowest is left with {percent(least.before, least.after)}: {least.name}, "
            f"{least.before} to {least.after}."
        )
    rows = [(r.name, r.kind, ", ".join(r.layers), r.before, r.after, percent(r.before, r.after)) for r in groups]
    heads = ("group", "kind", "layers", "before", "after", "kept")
    kinds = dict.fromkeys(row.kind for row in groups)
    return {
        "text": text,
        "charts": [_widths_of(f"widths-{index}", kind, groups, text) for index, kind in enumerate(kinds)],
        "table": table("Units of every group, before and after", heads, rows),
    }


def _widths_of(anchor: str, kind: str, groups: Sequence[GroupRow], text: str) -> dict[str, Any]:
    """Returns the chart of the groups of one kind: next to channels, the few heads would not show."""
    rows = [(row.name.replace(f":{kind}", ""), row.before, row.after) for row in groups if row.kind == kind]
    name = KINDS.get(kind, kind)
    title = f"{name} of every group, before and after"
    return {"name": name, "chart": chart(anchor, title, text, charts.bars, rows, name.lower())}


def scores(found: Report) -> dict[str, Any] | None:
    """Returns how the units rank and where the cut lies; None if nothing was ranked."""
    summary = found.scores
    if summary is None or not summary.groups or not any((*summary.kept, *summary.removed)):
        return None
    text = _ranked(summary)
    heads = ("group", "stay", "go", "lowest bin from", "highest bin to", "cut")[: 5 if summary.cut is not None else 6]
    spans = (f"{low:.4g} to {high:.4g}" for low, high in pairwise(summary.edges))
    bins = zip(spans, summary.kept, summary.removed, strict=True)
    groups = [_cells(summary, group)[: len(heads)] for group in summary.groups]
    by_score, by_group = (
        "How many units have which score, and where the cut is",
        "How the scores of every group are distributed",
    )
    return {
        "text": text,
        "legend": _KEPT_REMOVED_CUT if any(summary.removed) else _KEPT_REMOVED_CUT[:1],
        "overall": chart("distribution", by_score, text, charts.histogram, summary),
        "overall_table": table("Units by score", (summary.unit, "stay", "go"), bins),
        "groups": chart("strips", by_group, text, charts.strips, summary),
        "groups_table": table("Units by group", heads, groups),
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
    """Returns where parameters, MACs and the time of the compilation go."""
    parts = []
    for key, name, unit in (("params", "Parameters", "parameters"), ("macs", "MACs", "MACs per sample")):
        rows = [(row.name, *getattr(row, key)) for row in found.layers if any(getattr(row, key))]
        if rows:
            parts.append(_cost(key, f"{name} by layer", unit, rows))
    if found.seconds:
        parts.append(_time(found.seconds))
    return parts


def _cost(key: str, title: str, unit: str, rows: Sequence[tuple[str, int, int]]) -> dict[str, Any]:
    top, text = _top(rows, unit)
    cells = [(*row, percent(*row[1:])) for row in rows]
    return {
        "title": title,
        "text": text,
        "legend": (("before", "before"), ("after", "after")),
        "chart": chart(key, title, text, charts.bars, top, unit),
        "table": table(f"{title}, front to back", ("layer", "before", "after", "kept"), cells),
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
        alike: dict[str, list[tuple[str, int, int]]] = {}
        for row in rows:
            alike.setdefault(_DIGITS.sub("*", row[0]), []).append(row)
        together = [
            (name if len(same) > 1 else same[0][0], sum(row[1] for row in same), sum(row[2] for row in same))
            for name, same in alike.items()
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

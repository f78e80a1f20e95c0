"""The page of a report."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

from torch import nn

from fxprune._base.files import write_text
from fxprune.reporting.html.block_map import LEVELS, lanes
from fxprune.reporting.html.render import rendered
from fxprune.reporting.html.rows import Table, group_views, table, tree
from fxprune.results.attached import report
from fxprune.results.fidelity import DATA, scale_text
from fxprune.results.record import FrozenRow, Report
from fxprune.results.tables import by_reason, speedup_text
from fxprune.results.text import error_text, verdict


def page(pruned_or_report: nn.Module | Report) -> str:
    """Returns the report as one HTML page that needs no other file and no network.

    Args:
        pruned_or_report: what ``fxprune.compile`` or ``fxprune.load`` returned, or its report.

    Raises:
        FxpruneError: fxprune did not make this model.
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    found = pruned_or_report if isinstance(pruned_or_report, Report) else report(pruned_or_report)
    return rendered("report.html.j2", lambda: _contents(found))


def write_html(pruned_or_report: nn.Module | Report, path: str | PathLike[str]) -> None:
    """Writes the page of a report to a file, whole; whatever interrupts it, an old file stays as it was.

    Args:
        pruned_or_report: what ``fxprune.compile`` or ``fxprune.load`` returned, or its report.
        path: the file, such as ``report.html``.

    Raises:
        FxpruneError: fxprune did not make this model.
        MissingExtraError: matplotlib or jinja2 is not installed.
        OSError: it cannot be written.
    """
    write_text(path, page(pruned_or_report))


def _contents(found: Report) -> dict[str, Any]:
    from fxprune.reporting.html import sections

    views = group_views(found.groups, found.scores)
    return {
        "report": found,
        "asked": _asked(found),
        "totals": _totals(found),
        "lost": sections.lost(found.groups),
        "lanes": lanes(views),
        "levels": LEVELS,
        "scores": sections.scores(found),
        "costs": sections.costs(found),
        "tree": tree(views) if views else None,
        "reasons": _reasons(found.frozen),
        "verdict": verdict(found),
        "error": error_text(found),
        "scale": scale_text(),
        "data": "" if found.fidelity is None else DATA.get(found.fidelity.data, ""),
    }


def _asked(found: Report) -> str:
    if found.plan is None:
        return ""
    bounds = found.plan.budget
    return "shares by layer" if bounds is None else " and ".join(_bound(*bound) for bound in bounds.items())


def _bound(key: str, bound: float) -> str:
    if key == "latency_ms":
        return f"{bound:g} ms"
    name = {"params": "parameters", "macs": "MACs"}.get(key, key)
    return f"{100 * bound:.4g} % of the {name}" if isinstance(bound, float) else f"{bound:,} {name}"


def _totals(found: Report) -> list[tuple[str, float, float, str, str, str]]:
    """Returns (name, before, after), both as text, and by which factor."""
    rows: list[tuple[str, tuple[float, float], str, str]] = [
        ("Parameters", found.params, ",", "smaller"),
        ("MACs per sample", found.macs, ",", "smaller"),
        ("Bytes", found.bytes, ",", "smaller"),
    ]
    if found.latency is not None:
        rows.insert(2, ("Milliseconds a call", (found.latency.dense_ms, found.latency.measured_ms), ".3g", ""))
    return [
        (name, before, after, f"{before:{form}}", f"{after:{form}}", _factor(before, after, what))
        for name, (before, after), form, what in rows
    ]


def _factor(before: float, after: float, what: str) -> str:
    if not before or not after:
        return ""
    if not what:
        return f"speed-up {speedup_text(before, after)}"
    return f"{before / after:.2f} x {what}" if before >= after else f"{after / before:.2f} x as much"


def _reasons(rows: Sequence[FrozenRow]) -> list[tuple[str, int, Table]]:
    """Returns (reason, coordinates, table of what it holds)."""
    heads = ("parameter", "axis", "coordinates")
    held = by_reason((row.reason, (row.tensor, row.axis, row.coordinates), row.coordinates) for row in rows)
    return [(reason, count, table(f"Held by {reason}", heads, cells)) for reason, count, cells in held]

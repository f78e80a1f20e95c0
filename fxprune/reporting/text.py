"""The report as text: tables of totals, groups and what is frozen, and the certificate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fxprune.reporting.tables import elided, few, frozen_table, percent, table

if TYPE_CHECKING:
    from fxprune.reporting.record import GroupRow, Report


def as_text(report: Report) -> str:
    """Returns the tables: totals, groups, what is frozen and why, lists of names and the certificate."""
    frozen = frozen_table((row.reason, f"{row.tensor}[{row.axis}]", row.coordinates) for row in report.frozen)
    parts = [_totals(report), _groups(report.groups), frozen, _lists(report), _certificate(report)]
    return "\n\n".join(part for part in parts if part)


def _totals(report: Report) -> str:
    rows = [
        (name, f"{before:,}", f"{after:,}", percent(before, after), _factor(before, after))
        for name, (before, after) in (
            ("parameters", report.params), ("MACs per sample", report.macs), ("bytes", report.bytes),
        )
    ]  # fmt: skip
    return table(f"fxprune: {report.method}", rows, ("", "before", "after", "kept", "smaller"))


def _groups(groups: Sequence[GroupRow]) -> str:
    if not groups:
        return ""
    rows = [
        (row.name, row.kind, few(row.layers, 2), row.before, row.after, percent(row.before, row.after))
        for row in groups
    ]
    touched = sum(row.after < row.before for row in groups)
    title = f"groups: {len(groups)}, of which {touched} lose units"
    return table(title, elided(rows), ("group", "kind", "layers", "before", "after", "kept"))


def _lists(report: Report) -> str:
    lines = [] if report.latency is None else [str(report.latency)]
    if report.islands:
        lines.append(f"islands: {few(report.islands, 8)}; all else stays as it is")
    if report.collapsed:
        lines.append(f"collapsed: {few(report.collapsed, 8)}")
    if report.dropped:
        lines.append(f"dropped: {report.dropped:,} parameters of the original that its forward never reaches")
    lines += [f"skipped: {line}" for (line,) in elided([(line,) for line in report.skipped])]
    lines += [f"note: {line}" for line in report.notes]
    if report.seconds:
        stages = ", ".join(f"{stage} {value:.2f}" for stage, value in report.seconds.items())
        lines.append(f"seconds: {stages}; {sum(report.seconds.values()):.2f} in all")
    return "\n".join(lines)


def _certificate(report: Report) -> str:
    error = "unknown" if report.max_error is None else f"{report.max_error:.1e}"
    limit = "" if report.tolerance is None else f" (tolerance {report.tolerance:.0e}, {report.dtype})"
    if report.verified:
        return f"verified: equal to the masked twin, relative error {error}{limit}"
    if report.verified is None:
        return "not verified: " + ("the comparison could not tell; see the notes" if report.dtype else "not compared")
    return f"WRONG: differs from the masked twin, relative error {error}{limit}"


def _factor(before: int, after: int) -> str:
    return f"{before / after:.2f} x" if after else "-"

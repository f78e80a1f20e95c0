"""The report as text: tables of totals, groups and what is frozen, the certificate and the fidelity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fxprune._base.shown import html_summary, text_summary
from fxprune.results.alike import folded
from fxprune.results.group_rows import group_rows
from fxprune.results.tables import few, frozen_table, percent, table

if TYPE_CHECKING:
    from fxprune.results.record import Report

#: Lines of one kind that are printed one by one.
_LINES = 4


def as_text(report: Report) -> str:
    """Returns the tables: totals, groups, what is frozen and why, lists of names, the certificate and the fidelity."""
    frozen = frozen_table((row.reason, f"{row.tensor}[{row.axis}]", row.coordinates) for row in report.frozen)
    parts = [_totals(report), _groups(report), frozen, _lists(report), "\n".join(_seals(report))]
    return "\n\n".join(part for part in parts if part)


def in_brief(report: Report) -> str:
    """Returns totals, certificate and fidelity, a line each."""
    sizes = (f"{name}: {before:,} -> {after:,} ({percent(before, after)})" for name, (before, after) in _sizes(report))
    units = f"{report.units_removed:,} units removed from {touched(report)} of {len(report.groups)} groups"
    more = "print() shows groups, what is frozen and why, and the rest"
    close = report.fidelity
    near = [] if close is None else [f"fidelity: {close.sentence}", *([f"closer: {close.hint}"] if close.hint else [])]
    lines = [*sizes, units, _certificate(report), *near, more]
    return text_summary(f"fxprune.Report: {_methods(report)}", lines)


def as_html(report: Report) -> str:
    """Returns totals, groups, certificate and fidelity as HTML, for notebooks."""
    facts = [(name, f"{a:,} -> {b:,} ({percent(a, b)})") for name, (a, b) in _sizes(report)]
    heads, rows, whole = group_rows(report.groups)
    facts += [("groups", whole)] if whole else []
    facts.append(("certificate", _certificate(report)))
    if report.fidelity is not None:
        facts.append(("fidelity", str(report.fidelity)))
    return html_summary(f"fxprune: {_methods(report)}", facts, heads, rows)


def _methods(report: Report) -> str:
    return f"{report.method}, recovered by {report.recover}" if report.recover else report.method


def _sizes(report: Report) -> tuple[tuple[str, tuple[int, int]], ...]:
    return ("parameters", report.params), ("MACs per sample", report.macs), ("bytes", report.bytes)


def touched(report: Report) -> int:
    """Returns how many groups lose units."""
    return sum(row.after < row.before for row in report.groups)


def _totals(report: Report) -> str:
    rows = [
        (name, f"{before:,}", f"{after:,}", percent(before, after), _factor(before, after))
        for name, (before, after) in _sizes(report)
    ]
    return table(f"fxprune: {_methods(report)}", rows, ("", "before", "after", "kept", "smaller"))


def _groups(report: Report) -> str:
    if not report.groups:
        return ""
    heads, rows, whole = group_rows(report.groups)
    title = f"groups: {len(report.groups)}, of which {touched(report)} lose units; the largest share lost comes first"
    parts = [table(title, rows, heads) if rows else title.partition(";")[0], whole]
    return "\n".join(part for part in parts if part)


def _lists(report: Report) -> str:
    lines = [] if report.latency is None else [str(report.latency)]
    if report.islands:
        lines.append(f"islands: {few(report.islands, 8)}; all else stays as it is")
    if report.collapsed:
        lines.append(f"collapsed: {few(report.collapsed, 8)}")
    if report.dropped:
        lines.append(f"dropped: {report.dropped:,} parameters of the original that its forward never reaches")
    lines += [*_alike("skipped", report.skipped, _LINES), *_alike("note", report.notes)]
    if report.seconds:
        stages = ", ".join(f"{stage} {value:.2f}" for stage, value in report.seconds.items())
        lines.append(f"seconds: {stages}; {sum(report.seconds.values()):.2f} in all")
    return "\n".join(lines)


def _alike(what: str, lines: Sequence[str], most: int | None = None) -> list[str]:
    """Returns lines, those that differ in numbers alone as one that says how many they are, and how many more there are."""
    found = folded(lines, _LINES)
    shown = [
        f"{what}: {line}" + (f" ({len(places)} of these)" if len(places) > 1 else "") for line, places in found[:most]
    ]
    more = sum(len(places) for _, places in found[len(shown) :])
    return [*shown, f"{what}: {more:,} more, which to_dict() has"] if more else shown


def verdict(report: Report) -> str:
    """Returns whether the model computes what the original computes without what went, and by how much it is off."""
    if report.verified is None:
        return "not verified: " + ("the comparison could not tell; see the notes" if report.dtype else "not compared")
    found = "verified: the rewriting is exact: equal to" if report.verified else "WRONG: differs from"
    return f"{found} the masked twin, relative error {error_text(report)}"


def error_text(report: Report) -> str:
    """Returns the largest relative error, in figures."""
    return "unknown" if report.max_error is None else f"{report.max_error:.1e}"


def _certificate(report: Report) -> str:
    if report.verified is None or report.tolerance is None:
        return verdict(report)
    return f"{verdict(report)} (tolerance {report.tolerance:.0e}, {report.dtype})"


def _seals(report: Report) -> list[str]:
    """Returns whether the rewriting is exact, and then how close the outputs are to the dense model's, a line each."""
    if (fidelity := report.fidelity) is None:
        return [_certificate(report)]
    lines = [_certificate(report), f"fidelity: {fidelity}"]
    figures = ", ".join(f"{name} {text}" for name, text in fidelity.details().items())
    return [*lines, f"          {figures}"] if figures else lines


def _factor(before: int, after: int) -> str:
    return f"{before / after:.2f} x" if after else "-"

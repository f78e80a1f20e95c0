"""The page of a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from os import PathLike
from typing import Any

from torch import nn

from fxprune._base.files import write_text
from fxprune.reporting.html.render import rendered
from fxprune.reporting.html.rows import Table, group_views, table, tree
from fxprune.results.attached import report
from fxprune.results.record import FrozenRow, Report
from fxprune.results.tables import counted, percent, share


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

    plan = found.plan
    views = group_views(found.groups, found.scores)
    contents: dict[str, Any] = {
        "method": found.method,
        "asked": _asked(found),
        "version": "" if plan is None else plan.versions.get("fxprune", ""),
        "totals": _totals(found),
        "units_removed": f"{found.units_removed:,}",
        "units_before": f"{sum(row.before for row in found.groups):,}",
        "units_share": share(sum(r.before for r in found.groups), sum(r.after for r in found.groups)),
        "groups_count": len(found.groups),
        "groups_touched": sum(row.after < row.before for row in found.groups),
        "facts": _facts(found),
        "widths": sections.widths(found.groups),
        "scores": sections.scores(found),
        "costs": sections.costs(found),
        "tree": tree(views) if views else None,
        "frozen": _frozen(found.frozen),
        "lists": _lists(found),
        "certificate": _certificate(found),
        "notes": found.notes,
    }
    named = (
        ("summary", "Headline", True),
        ("widths", "Widths", contents["widths"]),
        ("scores", "Scores", contents["scores"]),
        ("costs", "Where it goes", contents["costs"]),
        ("coupling", "What goes together", views),
        ("frozen", "What stays", contents["frozen"]),
        ("certificate", "Certificate", True),
    )
    contents["sections"] = [(anchor, label) for anchor, label, there in named if there]
    return contents


def _asked(found: Report) -> str:
    if found.plan is None:
        return ""
    if found.plan.budget is None:
        return "shares by layer"
    names = {"params": "parameters", "macs": "MACs"}
    parts = []
    for key, bound in found.plan.budget.items():
        if key == "latency_ms":
            parts.append(f"{bound:g} ms")
        else:
            share = f"{100 * bound:.4g} % of the" if isinstance(bound, float) else f"{bound:,}"
            parts.append(f"{share} {names.get(key, key)}")
    return " and ".join(parts)


def _totals(found: Report) -> list[dict[str, Any]]:
    rows: list[tuple[str, float, float, str]] = [
        ("Parameters", *found.params, ","),
        ("MACs per sample", *found.macs, ","),
        ("Bytes", *found.bytes, ","),
    ]
    if found.latency is not None:
        rows.append(("Milliseconds", found.latency.dense_ms, found.latency.measured_ms, ".3g"))
    return [
        {
            "name": name,
            "before": f"{before:{form}}",
            "after": f"{after:{form}}",
            "kept": percent(before, after),
            "share": min(share(before, after), 100.0),
            "factor": _factor(before, after),
        }
        for name, before, after, form in rows
    ]


def _factor(before: float, after: float) -> str:
    if not before or not after:
        return ""
    return f"{before / after:.2f} x smaller" if before >= after else f"{after / before:.2f} x as much"


def _facts(found: Report) -> list[tuple[str, str]]:
    facts = []
    if (latency := found.latency) is not None:
        over = "met" if latency.met else f"missed by {latency.measured_ms - latency.limit_ms:.3g} ms"
        facts += [
            ("Latency limit", f"{latency.limit_ms:.3g} ms, {over}"),
            ("Predicted", f"{latency.predicted_ms:.3g} ms"),
            ("Measured on", str(latency.setting)),
        ]
    if found.dropped:
        facts.append(("Dropped", f"{found.dropped:,} parameters of the original that its forward never reaches"))
    return facts


def _frozen(rows: Sequence[FrozenRow]) -> dict[str, Any] | None:
    if not rows:
        return None
    coordinates: Counter[str] = Counter()
    held: dict[str, list[FrozenRow]] = {}
    for row in rows:
        coordinates[row.reason] += row.coordinates
        held.setdefault(row.reason, []).append(row)
    return {
        "text": f"{counted(len(rows), 'axis', 'axes')} of parameters hold coordinates that can never go, "
        f"for {counted(len(held), 'reason')}.",
        "reasons": [
            {
                "reason": reason,
                "coordinates": f"{count:,}",
                "axes": len(held[reason]),
                "table": _held(reason, held[reason]),
            }
            for reason, count in coordinates.most_common()
        ],
    }


def _held(reason: str, rows: Sequence[FrozenRow]) -> Table:
    return table(
        f"Held by {reason}",
        ("parameter", "axis", "coordinates"),
        [(row.tensor, row.axis, row.coordinates) for row in rows],
    )


def _lists(found: Report) -> list[dict[str, Any]]:
    parts = (
        (
            "islands",
            "Parts",
            "The figures are about the parts that were captured; all else stays as it is.",
            found.islands,
        ),
        ("collapsed", "Layers that are gone", f"{counted(len(found.collapsed), 'layer')} collapsed.", found.collapsed),
        ("skipped", "Corrections that were not made", "What recovery left alone, and why.", found.skipped),
    )
    return [
        {"id": anchor, "title": title, "text": text, "lines": lines} for anchor, title, text, lines in parts if lines
    ]


def _certificate(found: Report) -> dict[str, Any]:
    error = "unknown" if found.max_error is None else f"{found.max_error:.1e}"
    if found.verified:
        state, sign, line = "good", "✓", f"Verified: equal to the masked twin, relative error {error}"
        text = (
            "The pruned model was run beside the original at full size with zeros where removed channels "
            "enter a sum. Both gave the same."
        )
    elif found.verified is None:
        state, sign = "open", "?"
        why = "the comparison could not tell; see the notes" if found.dtype else "not compared"
        line, text = (f"Not verified: {why}", "Nothing is known of the pruned model's agreement with its masked twin.")
    else:
        state, sign, line = "bad", "✗", f"WRONG: differs from the masked twin, relative error {error}"
        text = "The pruned model does not compute what the original computes without the removed channels."
    facts = [("Relative error", error)] if found.dtype or found.max_error is not None else []
    if found.tolerance is not None:
        facts.append(("Tolerance", f"{found.tolerance:.0e}"))
    if found.dtype:
        facts.append(("Precision", found.dtype))
    if found.plan is not None:
        facts.append(("Seed", str(found.plan.seed)))
        facts += sorted(found.plan.versions.items())
    return {"state": state, "sign": sign, "line": line, "text": text, "facts": facts}

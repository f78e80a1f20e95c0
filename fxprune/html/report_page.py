"""The page of a report."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from os import PathLike
from typing import Any

from torch import nn

from fxprune.files import write_text
from fxprune.html.render import rendered
from fxprune.html.rows import Table, group_views, table, tree
from fxprune.report import FrozenRow, GroupRow, Report, report
from fxprune.tables import percent

#: The layers that a cost chart shows; the table has all.
LAYERS = 20

#: If the costliest layers have less than this share together, the chart takes alike layers together instead.
MOST = 0.75

#: How kinds of unit are called on the page.
KINDS = {
    "channel": "Channels", "expert": "Experts", "head": "Heads", "kv_group": "Key and value heads", "head_dim": "Dimensions of heads",
    "block": "Blocks",
}  # fmt: skip

_DIGITS = re.compile(r"(?<![^._])\d+(?![^._])")

_KEPT_REMOVED_CUT = (("after", "stay"), ("removed", "go"), ("cut", "the cut"))


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
    plan = found.plan
    views = group_views(found.groups, found.scores)
    contents: dict[str, Any] = {
        "method": found.method,
        "asked": _asked(found),
        "version": "" if plan is None else plan.versions.get("fxprune", ""),
        "totals": _totals(found),
        "units_removed": f"{found.units_removed:,}",
        "units_before": f"{sum(row.before for row in found.groups):,}",
        "units_share": _share(sum(r.before for r in found.groups), sum(r.after for r in found.groups)),
        "groups_count": len(found.groups),
        "groups_touched": sum(row.after < row.before for row in found.groups),
        "facts": _facts(found),
        "widths": _widths(found.groups),
        "scores": _scores(found),
        "costs": _costs(found),
        "tree": tree(views) if views else None,
        "frozen": _frozen(found.frozen),
        "lists": _lists(found),
        "certificate": _certificate(found),
        "notes": found.notes,
    }
    named = (
        ("summary", "Headline", True), ("widths", "Widths", contents["widths"]),
        ("scores", "Scores", contents["scores"]), ("costs", "Where it goes", contents["costs"]),
        ("coupling", "What goes together", views),
        ("frozen", "What stays", contents["frozen"]), ("certificate", "Certificate", True),
    )  # fmt: skip
    contents["sections"] = [(anchor, label) for anchor, label, there in named if there]
    return contents


def _share(before: float, after: float) -> float:
    return 100 * after / before if before else 0.0


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
        ("Parameters", *found.params, ","), ("MACs per sample", *found.macs, ","),
        ("Bytes", *found.bytes, ","),
    ]  # fmt: skip
    if found.latency is not None:
        rows.append(("Milliseconds", found.latency.dense_ms, found.latency.measured_ms, ".3g"))
    return [
        {
            "name": name, "before": f"{before:{form}}", "after": f"{after:{form}}",
            "kept": percent(before, after), "share": min(_share(before, after), 100.0),
            "factor": _factor(before, after),
        }
        for name, before, after, form in rows
    ]  # fmt: skip


def _factor(before: float, after: float) -> str:
    if not before or not after:
        return ""
    return f"{before / after:.2f} x smaller" if before >= after else f"{after / before:.2f} x as much"


def _facts(found: Report) -> list[tuple[str, str]]:
    facts = []
    if (latency := found.latency) is not None:
        over = "met" if latency.met else f"missed by {latency.measured_ms - latency.limit_ms:.3g} ms"
        threads = f", {_count(latency.threads, 'thread')}" if latency.device == "cpu" else ""
        facts += [
            ("Latency limit", f"{latency.limit_ms:.3g} ms, {over}"),
            ("Predicted", f"{latency.predicted_ms:.3g} ms"),
            (
                "Measured on",
                f"{latency.device}, {latency.backend}, batch of {latency.batch_size}{threads}",
            ),
        ]
    if found.dropped:
        facts.append(
            ("Dropped", f"{found.dropped:,} parameters of the original that its forward never reaches")
        )
    return facts


def _widths(groups: Sequence[GroupRow]) -> dict[str, Any] | None:

    if not groups:
        return None
    touched = [row for row in groups if row.after < row.before]
    text = f"{len(touched)} of {_count(len(groups), 'group')} lose units."
    if touched:
        least = min(touched, key=lambda row: row.after / max(row.before, 1))
        text += (
            f" The narrowest is left with {percent(least.before, least.after)}: {least.name}, "
            f"{least.before} to {least.after}."
        )
    rows = [
        (r.name, r.kind, ", ".join(r.layers), r.before, r.after, percent(r.before, r.after)) for r in groups
    ]
    return {
        "text": text,
        "charts": [
            _widths_of(f"widths-{index}", kind, groups, text)
            for index, kind in enumerate(dict.fromkeys(row.kind for row in groups))
        ],
        "table": table(
            "Units of every group, before and after",
            ("group", "kind", "layers", "before", "after", "kept"),
            rows,
        ),
    }


def _widths_of(anchor: str, kind: str, groups: Sequence[GroupRow], text: str) -> dict[str, Any]:
    """Returns the chart of the groups of one kind: next to channels, the few heads would not show."""
    from fxprune.html import charts

    rows = [row for row in groups if row.kind == kind]
    name = KINDS.get(kind, kind)
    names = tuple(row.name.replace(f":{kind}", "") for row in rows)
    bars = charts.Bars(names, tuple(row.before for row in rows), tuple(row.after for row in rows))
    title = f"{name} of every group, before and after"
    return {"name": name, "chart": charts.widths(anchor, bars, name, title, text)}


def _scores(found: Report) -> dict[str, Any] | None:
    from fxprune.html import charts

    scores = found.scores
    if scores is None or not scores.groups or not any((*scores.kept, *scores.removed)):
        return None
    below, above = scores.astray
    if scores.cut is None:
        text = f"Ranked by {scores.unit}; every group has a cut of its own."
        if not any(scores.removed):
            text = f"Ranked by {scores.unit}; nothing goes."
    else:
        text = f"Ranked by {scores.unit}, low goes first. The cut lies at {scores.cut:.3g}."
        astray = [f"{_count(below, 'unit')} below it {'stays' if below == 1 else 'stay'}"] if below else []
        astray += [f"{_count(above, 'unit')} above it {'goes' if above == 1 else 'go'}"] if above else []
        if astray:
            text += (
                f" {' and '.join(astray)}: minimum widths, multiples, what goes together and the exact "
                "budget decide there."
            )
    bins = [
        (f"{low:.4g} to {high:.4g}", kept, removed)
        for (low, high), kept, removed in zip(
            pairwise(scores.edges), scores.kept, scores.removed, strict=True
        )
    ]
    groups = []
    for group in scores.groups:
        total = [a + b for a, b in zip(group.kept, group.removed, strict=True)]
        filled = [i for i, count in enumerate(total) if count]
        low, high = (
            (scores.edges[filled[0]], scores.edges[filled[-1] + 1]) if filled else (math.nan, math.nan)
        )
        cut = "-" if group.cut is None else f"{group.cut:.4g}"
        groups.append(
            (group.name, sum(group.kept), sum(group.removed), f"{low:.4g}", f"{high:.4g}")
            + (() if scores.cut is not None else (cut,))
        )
    heads = ("group", "stay", "go", "lowest bin from", "highest bin to")
    return {
        "text": text,
        "legend": _KEPT_REMOVED_CUT if any(scores.removed) else _KEPT_REMOVED_CUT[:1],
        "overall": charts.distribution(scores, "How many units have which score, and where the cut is", text),
        "overall_table": table("Units by score", (scores.unit, "stay", "go"), bins),
        "groups": charts.strips(scores, "How the scores of every group are distributed", text),
        "groups_table": table("Units by group", heads if scores.cut is not None else (*heads, "cut"), groups),
    }


def _costs(found: Report) -> list[dict[str, Any]]:
    from fxprune.html import charts

    parts = []
    for key, name, unit in (("params", "Parameters", "parameters"), ("macs", "MACs", "MACs per sample")):
        rows = [(row.name, *getattr(row, key)) for row in found.layers if any(getattr(row, key))]
        if not rows:
            continue
        top, text = _top(rows, unit)
        title = f"{name} by layer"
        parts.append(
            {
                "title": title,
                "text": text,
                "legend": (("before", "before"), ("after", "after")),
                "chart": charts.costs(key, charts.Bars(*zip(*top, strict=True)), unit, title, text),
                "table": table(
                    f"{title}, front to back",
                    ("layer", "before", "after", "kept"),
                    [(*row, percent(*row[1:])) for row in rows],
                ),
            }
        )
    if found.seconds:
        total = sum(found.seconds.values())
        longest = max(found.seconds, key=lambda stage: found.seconds[stage])
        text = f"{total:.2f} s in all; {longest} took {_share(total, found.seconds[longest]):.0f} % of it."
        parts.append(
            {
                "title": "Time of the compilation",
                "text": text,
                "legend": (),
                "chart": charts.seconds(
                    list(found.seconds), list(found.seconds.values()), "Seconds by stage", text
                ),
                "table": table(
                    "Seconds by stage",
                    ("stage", "seconds"),
                    [(stage, f"{value:.2f}") for stage, value in found.seconds.items()],
                ),
            }
        )
    return parts


def _top(rows: Sequence[tuple[str, int, int]], unit: str) -> tuple[list[tuple[str, int, int]], str]:
    """Returns the costliest layers; where many are alike, those that differ in numbers alone together."""
    total, left = sum(row[1] for row in rows), sum(row[2] for row in rows)
    shown = sorted(rows, key=lambda row: -row[1])[:LAYERS]
    what = f"{_count(len(rows), 'layer')}, costliest first"
    if sum(row[1] for row in shown) < MOST * total:
        alike: dict[str, list[tuple[str, int, int]]] = {}
        for row in rows:
            alike.setdefault(_DIGITS.sub("*", row[0]), []).append(row)
        together = [
            (
                name if len(same) > 1 else same[0][0],
                sum(row[1] for row in same),
                sum(row[2] for row in same),
            )
            for name, same in alike.items()
        ]
        shown = sorted(together, key=lambda row: -row[1])[:LAYERS]
        what = f"{_count(len(rows), 'layer')}, those that differ in numbers alone together, costliest first"
    first, before, after = shown[0]
    share = _share(total, sum(row[1] for row in shown))
    rest = "" if share > 99.95 else f" The chart shows {share:.1f} % of them, the table all."
    return shown, (
        f"{what}. {first} had {_share(total, before):.1f} % of the {unit} and has "
        f"{_share(left, after):.1f} % of what is left.{rest}"
    )


def _frozen(rows: Sequence[FrozenRow]) -> dict[str, Any] | None:
    if not rows:
        return None
    coordinates: Counter[str] = Counter()
    held: dict[str, list[FrozenRow]] = {}
    for row in rows:
        coordinates[row.reason] += row.coordinates
        held.setdefault(row.reason, []).append(row)
    return {
        "text": f"{_count(len(rows), 'axis', 'axes')} of parameters hold coordinates that can never go, "
        f"for {_count(len(held), 'reason')}.",
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
        ("islands", "Parts", "The figures are about the parts that were captured; all else stays as it is.",
         found.islands),
        ("collapsed", "Layers that are gone", f"{_count(len(found.collapsed), 'layer')} collapsed.",
         found.collapsed),
        ("skipped", "Corrections that were not made", "What recovery left alone, and why.", found.skipped),
    )  # fmt: skip
    return [
        {"id": anchor, "title": title, "text": text, "lines": lines}
        for anchor, title, text, lines in parts
        if lines
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
        line, text = (
            f"Not verified: {why}",
            "Nothing is known of the pruned model's agreement with its masked twin.",
        )
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
        facts += [(name, version) for name, version in found.plan.versions.items()]
    return {"state": state, "sign": sign, "line": line, "text": text, "facts": facts}


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"

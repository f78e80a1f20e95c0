"""From what a compilation found to its report."""

from __future__ import annotations

from collections.abc import Sequence

from fxprune.budget.solver import Solution
from fxprune.coupling.coupling import Coupling
from fxprune.reporting.layers import layer_rows
from fxprune.results.certificate import Certificate
from fxprune.results.plan import Plan
from fxprune.results.record import FrozenRow, GroupRow, Report
from fxprune.rewriting.planning import gone_with


def make_report(
    coupling: Coupling,
    solution: Solution,
    plan: Plan,
    certificate: Certificate | None = None,
    *,
    skipped: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Report:
    """Returns the report of a compilation, without scores, seconds and latency.

    Args:
        coupling: of the model as it came.
        solution: what goes of it, or of what bridges have left of it, and the cost before and after.
        plan: the plan.
        certificate: what the comparison with the masked twin found, if it was made.
        skipped: what recovery left alone, and why.
        notes: anything else worth knowing.
    """
    captured, left = coupling.captured, solution.selection.coupling
    gone = gone_with(solution.selection)
    kept = {g.name: int((~gone[left.units[g.units]]).sum()) for g in left.groups}
    groups = tuple(
        GroupRow(g.name, g.kind, (*g.producers, *g.consumers), len(g.units), kept.get(g.name, 0), len(g.producers))
        for g in coupling.groups
    )
    unused = [p for name, p in captured.model.named_parameters() if name in captured.unused]
    doubts = [certificate.note] if certificate is not None and certificate.note else []
    return Report(
        params=(solution.before.params, solution.after.params),
        macs=(solution.before.macs, solution.after.macs),
        bytes=(solution.before.bytes, solution.after.bytes),
        method=plan.method,
        groups=groups,
        units_removed=sum(row.before - row.after for row in groups),
        verified=None if certificate is None else certificate.verified,
        max_error=None if certificate is None else certificate.max_error,
        tolerance=None if certificate is None else certificate.tolerance,
        dtype="" if certificate is None else certificate.dtype.removeprefix("torch."),
        frozen=tuple(FrozenRow(f.tensor, f.dim, f.coordinates, f.reason) for f in coupling.frozen()),
        collapsed=plan.collapsed,
        dropped=sum(p.numel() for p in unused),
        skipped=tuple(skipped),
        notes=(*captured.notes, *doubts, *notes),
        layers=layer_rows(coupling, solution.selection),
        plan=plan,
        doubt="" if certificate is None else certificate.note,
        compared=() if certificate is None else certificate.compared,
    )

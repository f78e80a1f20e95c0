"""Twenty budgets from 0.95 to 0.05: never over, nothing restorable, monotone, and counted as torch counts.

``python benchmarks/budget.py [--models NAME...] [--quick]``
"""

from __future__ import annotations

from typing import Any

from common import zoo
from common.audit import macs, params, removed_channels, restorable
from common.cli import begin, guarded, name_of, parser
from common.free import FREE
from common.results import record

import fxprune
from fxprune.budget.cost import cost_model
from tests.support.weights import randomise

MODELS = ["resnet50", "mobilenet_v2", "vit_b_16"]


def sweep(entry: zoo.Entry, shares: list[float], seed: int) -> list[dict[str, Any]]:
    """Compiles one network to each share and checks it; one line a share."""
    model, batch = entry.build(), entry.batch(2, seed=seed)
    randomise(model, seed, *(((), batch) if isinstance(batch, dict) else ((batch,), None)))
    arguments = ((), batch) if isinstance(batch, dict) else ((batch,), None)
    coupling = fxprune.couple(fxprune.capture(model, *arguments))
    cost = cost_model(coupling)
    rows: list[dict[str, Any]] = []
    for share in shares:
        try:
            pruned = fxprune.compile(
                model, [batch], share, method="magnitude", recover=None, verify=False, progress=False, seed=seed, **FREE
            )
        except fxprune.BudgetError as error:
            rows.append({"model": entry.name, "budget": share, "note": str(error)[:90]})
            continue
        report = fxprune.report(pruned)
        removed = removed_channels(coupling, report.plan.keep)
        limit, counted = int(share * report.params[0]), macs(pruned, batch)
        rows.append(
            {
                "model": entry.name,
                "budget": share,
                "kept params": round(report.params[1] / report.params[0], 6),
                "params": report.params[1],
                "macs": report.macs[1],
                "over": report.params[1] > limit,
                "restorable": len(restorable(coupling, cost, removed, {0: limit})),
                "params exact": report.params[1] == params(pruned) == cost.of(removed).params,
                "macs exact": report.macs[1] == counted,
                "macs counted": counted,
                "monotone": all(r["params"] >= report.params[1] for r in rows if "params" in r),
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Prints and records the table; ends with 1 if a promise is broken."""
    options = begin(parser(__doc__.splitlines()[0], MODELS))
    shares = [round(0.95 - i * 0.9 / 19, 4) for i in range(20)]
    if options.quick:
        shares = shares[::9]
    rows = [row for entry in zoo.select(options.models) for row in sweep(entry, shares, options.seed)]
    notes = [
        "Restorable: groups of which one more unit would have fitted. Exact: the report's figures against "
        "`sum(p.numel())` of the emitted module, and against half of what `torch.utils.flop_counter` counts per sample."
    ]
    title = "Twenty budgets on each network: never over, nothing restorable, monotone, exactly counted"
    print(record(name_of("budget", options), rows, title=title, seed=options.seed, notes=notes))
    kept = [row for row in rows if "params" in row]
    bad = [
        r for r in kept if r["over"] or r["restorable"] or not (r["params exact"] and r["macs exact"] and r["monotone"])
    ]
    print(f"{len(rows)} budgets: {len(kept)} reachable, {len(bad)} with a broken promise")
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    guarded(main)

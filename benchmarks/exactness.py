"""Half of the parameters of each network, verified against the masked twin; Torch-Pruning on the same networks.

Every parameter and statistic is random and calibrated (tests/support/weights.py), so that a wrong plan cannot pass.
``python benchmarks/exactness.py [--models NAME...] [--quick] [--no-peer]``
"""

from __future__ import annotations

import time
import traceback
from typing import Any

import torch
from common import torch_pruning, zoo
from common.audit import params, removed_channels, restorable, units_removed
from common.cli import begin, guarded, name_of, needs, parser
from common.free import FREE
from common.results import previous, record, table
from torch import nn

import fxprune
from fxprune.budget.cost import cost_model
from tests.support.weights import fingerprint, randomise, spread

BUDGET = 0.5
TITLE = "Half of the parameters, exactly: fxprune and Torch-Pruning on the same networks"
NOTES = [
    "kept: share of the parameters that the evaluation graph uses. float64, float32: max |a - b| / "
    "max |a - mean over the batch| against the masked twin, on a batch that compilation never saw "
    "(limits 1e-9 and 1e-4).",
    "restorable: groups of which one more unit would have fitted. other size: with dynamic_shapes; blank where the "
    "original, or its capture (swin_t: windows), allows one size only.",
    "heads asked for: ratios=0.5 with units=('head',) and with units=('head_dim',).",
    "Torch-Pruning gets numbers of heads, classifiers and attribute repairs as its examples give them, and the "
    "channel ratio that comes closest below half of the parameters by bisection; its seconds are build + prune of "
    "one attempt, ours the whole compile, capture and verification included.",
]


def examine(entry: zoo.Entry, seed: int) -> dict[str, Any]:
    """Compiles one network to half of its parameters and checks what came out; one line of the table."""
    model, batch = entry.build(), entry.batch(4, seed)
    randomise(model, seed, *_arguments(batch))
    before, healthy = fingerprint(model), _health(model, entry)
    start = time.perf_counter()
    pruned = _compile(model, batch, entry, seed, budget=BUDGET)
    seconds = time.perf_counter() - start
    report = fxprune.report(pruned)
    coupling = fxprune.couple(fxprune.capture(model, *_arguments(batch)))
    removed = removed_channels(coupling, report.plan.keep)
    limit = int(BUDGET * report.params[0])
    return {
        "model": entry.name,
        "params": report.params[0],
        "kept": round(report.params[1] / report.params[0], 4),
        "verified": report.verified,
        "float64": _error(coupling, removed, pruned, entry, torch.float64),
        "float32": _error(coupling, removed, pruned, entry, None),
        "batch 1, 3": _forward(model, pruned, [entry.batch(n, seed + 2) for n in (1, 3)]),
        "other size": None if entry.other is None else _forward(model, pruned, [entry.batch(2, seed, entry.other)]),
        "removed": _kinds(units_removed(coupling, removed)),
        "heads asked for": _heads(model, batch, entry, seed) if entry.attention else None,
        "over": params(pruned) > limit,
        "restorable": len(restorable(coupling, cost_model(coupling), removed, {0: limit})),
        "untouched": fingerprint(model) == before,
        "output spread": healthy,
        "seconds": round(seconds, 1),
    }


def _compile(model: nn.Module, batch: zoo.Batch, entry: zoo.Entry, seed: int, **target: Any) -> Any:
    batches, shapes = [batch], None
    if entry.other is not None and entry.kind == "text":  # a length that differs between batches is dynamic
        batches.append(entry.batch(4, seed, entry.other))
    elif entry.other is not None:
        shapes = entry.dynamic_shapes()
    return fxprune.compile(
        model,
        batches,
        target.pop("budget", None),
        method="magnitude",
        recover=None,
        dynamic_shapes=shapes,
        seed=seed,
        progress=False,
        **target,
        **FREE,
    )


def _heads(model: nn.Module, batch: zoo.Batch, entry: zoo.Entry, seed: int) -> str:
    """Removes half of the heads, and half of the head dimensions, and says how many went and whether it is exact."""
    parts = []
    for kind in ("head", "head_dim"):
        try:
            pruned = _compile(model, batch, entry, seed, ratios=0.5, units=(kind,))
        except fxprune.FxpruneError as error:
            parts.append(f"{kind}: {type(error).__name__}")
            continue
        report = fxprune.report(pruned)
        coupling = fxprune.couple(fxprune.capture(model, *_arguments(batch)))
        count = units_removed(coupling, removed_channels(coupling, report.plan.keep)).get(kind, 0)
        parts.append(f"{count} {kind}s{'' if report.verified else ' NOT VERIFIED'}")
    return ", ".join(parts)


def _error(coupling: Any, removed: Any, pruned: nn.Module, entry: zoo.Entry, dtype: torch.dtype | None) -> float:
    """Returns the error against the masked twin on a batch of its own, which compilation never saw."""
    batch = _arguments(entry.batch(3, seed=1234))
    certificate = fxprune.verify(coupling, removed, pruned, (batch[0], batch[1] or {}), dtype=dtype)
    if certificate.verified is not True:
        print(f"  {entry.name}: {certificate}", flush=True)
    return certificate.max_error if certificate.verified is not None else float("nan")


@torch.no_grad()
def _forward(model: nn.Module, pruned: nn.Module, batches: list[zoo.Batch]) -> bool | str:
    """Says whether the pruned model takes each batch and gives the original's shapes and container."""
    try:
        for batch in batches:
            want, got = zoo.call(model, batch), zoo.call(pruned, batch)
            if type(want) is not type(got):
                return f"{type(got).__name__} for {type(want).__name__}"
            if [t.shape for t in zoo.tensors(want)] != [t.shape for t in zoo.tensors(got)]:
                return "shapes differ"
    except Exception as error:  # any failure is a result of the table
        return f"{type(error).__name__}: {error}"[:60]
    return True


@torch.no_grad()
def _health(model: nn.Module, entry: zoo.Entry) -> float:
    return round(min(spread(out) for out in zoo.tensors(zoo.call(model, entry.batch(3, seed=1234)))), 3)


def _arguments(batch: zoo.Batch) -> tuple[tuple[Any, ...], dict[str, Any] | None]:
    return ((), batch) if isinstance(batch, dict) else ((batch,), None)


def _kinds(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}s" for kind, count in sorted(counts.items()))


def _peer(name: str, threads: int, limit: float) -> dict[str, Any]:
    result = torch_pruning.prune(name, BUDGET, threads=threads, limit=limit)
    seconds = None if result.build_seconds is None else round(result.build_seconds + (result.prune_seconds or 0), 2)
    return {
        "Torch-Pruning": "runs" if result.runs else f"fails: {result.error[:50]}",
        "its kept": result.share,
        "its seconds": seconds,
    }


def main() -> None:
    """Prints and records the table; ends with 1 if a network fails."""
    made = parser(__doc__.splitlines()[0], [])
    made.add_argument("--no-peer", action="store_true", help="leave Torch-Pruning out")
    made.add_argument("--limit", type=float, default=180.0, help="seconds that Torch-Pruning gets for one network")
    made.add_argument(
        "--resume", action="store_true", help="keep the rows of the last record, add the missing networks"
    )
    options = begin(made)
    options.no_peer |= options.quick
    if not options.no_peer:
        needs("torch_pruning")
    name = name_of("exactness", options)
    rows = [r for r in previous(name) if r["verified"] is True] if options.resume else []
    done = {row["model"] for row in rows}
    for entry in zoo.select(options.models):
        if entry.name in done:
            continue
        try:
            row = examine(entry, options.seed)
        except Exception as error:  # the table says so, and the other networks still run
            traceback.print_exc()
            row = {"model": entry.name, "verified": f"{type(error).__name__}: {error}"[:80]}
        if not options.no_peer:
            row |= _peer(entry.name, options.threads, options.limit)
        rows.append(row)
        print(row, flush=True)
        record(name, rows, title=TITLE, seed=options.seed, notes=NOTES)  # each time: a long run may be cut off
    print(table(rows))
    good = [r for r in rows if r["verified"] is True and not r["over"] and not r["restorable"] and r["untouched"]]
    print(f"{len(good)} of {len(rows)} networks exact, within budget, nothing restorable")
    raise SystemExit(0 if len(good) == len(rows) else 1)


if __name__ == "__main__":
    guarded(main)

"""Coverage: what of every architecture is captured, coupled, and pruned to 0.7 and 0.4 of its parameters, and what is not and why.

Each model is built small, gets random calibrated weights (tests/support/weights.py), and is verified against its masked twin in float64; then
it trains for a step, beside the original.
``python benchmarks/zoo.py [--collections ...] [--models ...] [--limit S] [--no-peer] [--rows FILE] [--quick]``
"""

from __future__ import annotations

from collections import Counter
from functools import cache, partial
from typing import Any

from common import torch_pruning
from common.architectures import select
from common.cli import begin, guarded, name_of, needs, parser, resumable
from common.coverage import BUDGETS, examine
from common.kept import Kept
from common.results import record
from common.worker import Worker

KINDS = ("channel", "head", "kv_group", "head_dim", "expert")


def ours(seed: int, name: str) -> dict[str, Any]:
    """Returns what `examine` finds of a model."""
    return examine(table()[name], seed)


@cache
def table() -> dict[str, Any]:
    """Returns the models by name."""
    return {entry.name: entry for entry in select()}


def line(found: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of our part of the line."""
    row: dict[str, Any] = {
        "params": found.get("params"),
        "captured": "capture" in found["seconds"],
        **{kind: found.get("units", {}).get(kind, 0) for kind in KINDS},
        "removable": found.get("removable"),
    }
    for budget in BUDGETS:
        outcome = found.get(str(budget), {})
        row |= {
            f"at {budget}": outcome.get("status"),
            f"kept {budget}": outcome.get("kept"),
            f"error {budget}": outcome.get("error"),
            f"sizes {budget}": outcome.get("sizes"),
            f"step {budget}": outcome.get("step"),
        }
    stages = found["seconds"]
    row["capture s"], row["couple s"] = stages.get("capture"), stages.get("couple")
    why = [
        found.get("error", ""),
        f"in parts: {', '.join(found['islands'])}" if found.get("islands") else "",
        *(found.get(str(b), {}).get("note", "") for b in BUDGETS),
    ]
    why += [f"no rule: {', '.join(found['unsupported'])}"] if found.get("unsupported") else []
    why += [f"held: {', '.join(f'{reason} ({count})' for reason, count in list(found.get('frozen', {}).items())[:3])}"]
    row["why"] = "; ".join(part for part in why if part)
    return row


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Returns a line for each collection."""
    lines = []
    for collection in dict.fromkeys(row["collection"] for row in rows):
        mine = [row for row in rows if row["collection"] == collection]
        parts = [f"{len(mine)} models", f"{sum(row['captured'] for row in mine)} captured"]
        for budget in BUDGETS:
            count = Counter(row[f"at {budget}"] or "failed" for row in mine)
            parts.append(f"at {budget}: " + ", ".join(f"{n} {status}" for status, n in count.most_common()))
            sizes: Counter[str] = Counter()
            for part in (part for row in mine for part in (row.get(f"sizes {budget}") or "").split(", ") if part):
                count_of, _, what = (
                    part.partition(" ") if part[:1].isdigit() else ("1", "", part.partition(" at ")[0][:9])
                )
                sizes[what] += int(count_of)
            parts.append("at other sizes: " + ", ".join(f"{n} {what}" for what, n in sizes.most_common()))
            steps = Counter((row.get(f"step {budget}") or "none").partition(":")[0][:9] for row in mine)
            parts.append(f"a training step at {budget}: " + ", ".join(f"{n} {what}" for what, n in steps.most_common()))
        if any("Torch-Pruning" in row for row in mine):
            count = Counter(row.get("Torch-Pruning") for row in mine)
            parts.append(
                f"Torch-Pruning at {BUDGETS[0]}: " + ", ".join(f"{n} {what}" for what, n in count.most_common())
            )
        lines.append(f"{collection}: " + "; ".join(parts))
    return lines


def row(name: str, worker: Worker, peer: Worker | None) -> dict[str, Any]:
    """Returns the values of one line of the table."""
    return line({"seconds": {}} | worker(name)) | ({} if peer is None else torch_pruning.line(peer(name), BUDGETS[0]))


def main() -> None:
    """Prints and records the table; ends with 1 if any model was pruned wrongly."""
    made = resumable(parser(__doc__.splitlines()[0]))
    made.add_argument("--collections", nargs="+", help="torchvision, timm, transformers, written")
    made.add_argument("--models", nargs="+", help="names, such as timm:resnet18")
    made.add_argument("--limit", type=float, default=300.0, help="seconds a model may take")
    made.add_argument("--no-peer", action="store_true", help="leave Torch-Pruning out")
    made.add_argument("--peer-limit", type=float, default=60.0, help="seconds that Torch-Pruning may take")
    made.add_argument("--name", default="zoo", help="of the record")
    options = begin(made)
    if options.quick:
        options.models, options.no_peer = options.models or ["written:mobilenet"], True
    if not options.no_peer:
        needs("torch_pruning")
    chosen = select(options.collections, options.models)
    worker = Worker(partial(ours, options.seed), options.threads, options.limit)
    peer = (
        None
        if options.no_peer
        else Worker(partial(torch_pruning.theirs, BUDGETS[0]), options.threads, options.peer_limit)
    )
    kept = Kept(options.rows)
    for entry in chosen:
        key = {"collection": entry.collection, "model": entry.name.partition(":")[2]}
        kept.add(key, partial(row, entry.name, worker, peer))
    notes = [
        "removable: share of the parameters that can go at all. error: against the masked twin in float64, limit 1e-9.",
        "sizes: outputs at two other sizes (batch, and height, width or length), equal to the original's with zeros where something "
        "is gone, or refused in words; taken by neither: the original takes none such.",
        "step: outputs, gradients and buffers of one training step in float64, without dropout, beside those of the original "
        "with zeros where something is gone; no zeros: it has none for this (a softmax over what is gone).",
        *summary(kept.rows),
        *kept.notes,
    ]
    title = "Coverage: every architecture at 0.7 and 0.4 of its parameters, verified in float64"
    print(record(name_of(options.name, options), kept.rows, title=title, seed=options.seed, notes=notes))
    columns = [f"{what} {budget}" for what in ("at", "sizes", "step") for budget in BUDGETS]
    raise SystemExit(any("WRONG" in (row.get(column) or "") for row in kept.rows for column in columns))


if __name__ == "__main__":
    guarded(main)

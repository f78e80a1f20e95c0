"""Coverage: what of every architecture is captured, coupled, and pruned to 0.7 and 0.4 of its parameters, and what is not and why.

Each model is built small, gets random calibrated weights (tests/util.py), and is verified against its masked twin in float64.
``python benchmarks/zoo.py [--collections ...] [--models ...] [--limit S] [--no-peer] [--rows FILE] [--quick]``
"""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from common import torch_pruning
from common.architectures import select
from common.cli import begin, name_of, parser, resumable
from common.coverage import BUDGETS, examine
from common.kept import Kept
from common.results import record

KINDS = ("channel", "head", "kv_group", "head_dim", "expert")


def _serve(pipe: Connection, seed: int, threads: int) -> None:
    """Examines the models whose names come through the pipe."""
    torch.set_num_threads(threads)
    table = {entry.name: entry for entry in select()}
    while True:
        pipe.send(json.dumps(examine(table[pipe.recv()], seed)))


class Worker:
    """A process that examines models, one after the other; a model that takes too long, or kills it, costs only itself."""

    def __init__(self, seed: int, threads: int, limit: float) -> None:
        self.seed, self.threads, self.limit = seed, threads, limit
        self.process: Any = None

    def __call__(self, name: str) -> dict[str, Any]:
        """Returns a model's values."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, there = context.Pipe()
            self.process = context.Process(target=_serve, args=(there, self.seed, self.threads), daemon=True)
            self.process.start()
            there.close()
        self.pipe.send(name)
        try:
            if self.pipe.poll(self.limit):
                answer: dict[str, Any] = json.loads(self.pipe.recv())
                return answer
            what = f"no end within {self.limit:.0f} s"
        except EOFError:
            self.process.join()
            what = f"the process ended with {self.process.exitcode}"
        self.process.kill()
        self.process = None
        return {"error": what, "seconds": {}}


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
        row |= {f"at {budget}": outcome.get("status"), f"kept {budget}": outcome.get("kept"), f"error {budget}": outcome.get("error")}  # fmt: skip
    stages = found["seconds"]
    row["capture s"], row["couple s"] = stages.get("capture"), stages.get("couple")
    why = [
        found.get("error", ""),
        f"in parts: {', '.join(found['islands'])}" if found.get("islands") else "",
        *(found.get(str(b), {}).get("note", "") for b in BUDGETS),
    ]
    why += [f"no rule: {', '.join(found['unsupported'])}"] if found.get("unsupported") else []
    why += [
        f"held: {', '.join(f'{reason} ({count})' for reason, count in list(found.get('frozen', {}).items())[:3])}"
    ]
    row["why"] = "; ".join(part for part in why if part)
    return row


def peer_line(name: str, threads: int, limit: float) -> dict[str, Any]:
    """Returns the values of Torch-Pruning's part of the line: the larger budget, by bisection of its ratio."""
    found = torch_pruning.prune(name, BUDGETS[0], limit=limit, attempts=4, threads=threads)
    spent = [s for s in (found.build_seconds, found.prune_seconds) if s is not None]
    reached = found.runs and found.share is not None and found.share <= BUDGETS[0]
    return {
        "Torch-Pruning": "runs" if reached else "misses the budget" if found.runs else "fails", "its kept": found.share,
        "its s": round(sum(spent), 2) if spent else None, "its error": found.error,
    }  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Returns a line for each collection."""
    lines = []
    for collection in dict.fromkeys(row["collection"] for row in rows):
        mine = [row for row in rows if row["collection"] == collection]
        parts = [f"{len(mine)} models", f"{sum(row['captured'] for row in mine)} captured"]
        for budget in BUDGETS:
            count = Counter(row[f"at {budget}"] or "failed" for row in mine)
            parts.append(f"at {budget}: " + ", ".join(f"{n} {status}" for status, n in count.most_common()))
        if any("Torch-Pruning" in row for row in mine):
            count = Counter(row.get("Torch-Pruning") for row in mine)
            parts.append(
                f"Torch-Pruning at {BUDGETS[0]}: "
                + ", ".join(f"{n} {what}" for what, n in count.most_common())
            )
        lines.append(f"{collection}: " + "; ".join(parts))
    return lines


def row(name: str, worker: Worker, options: Any) -> dict[str, Any]:
    """Returns the values of one line of the table."""
    peer = {} if options.no_peer else peer_line(name, options.threads, options.peer_limit)
    return line(worker(name)) | peer


def main() -> None:
    """Prints and records the table; ends with 1 if any model was pruned wrongly."""
    made = resumable(parser(__doc__.splitlines()[0]))
    made.add_argument("--collections", nargs="+", help="torchvision, timm, transformers, written")
    made.add_argument("--models", nargs="+", help="names, such as timm:resnet18")
    made.add_argument("--limit", type=float, default=300.0, help="seconds a model may take")
    made.add_argument("--no-peer", action="store_true", help="leave Torch-Pruning out")
    made.add_argument("--peer-limit", type=float, default=60.0, help="seconds that Torch-Pruning may take")
    options = begin(made)
    chosen = select(options.collections, options.models)
    worker, kept = Worker(options.seed, options.threads, options.limit), Kept(options.rows)
    for entry in chosen[::10] if options.quick else chosen:
        key = {"collection": entry.collection, "model": entry.name.partition(":")[2]}
        kept.add(key, partial(row, entry.name, worker, options))
    notes = [
        "removable: share of the parameters that can go at all. error: against the masked twin in float64, limit 1e-9.",
        *summary(kept.rows),
        *kept.notes,
    ]
    title = "Coverage: every architecture at 0.7 and 0.4 of its parameters, verified in float64"
    print(record(name_of("zoo", options), kept.rows, title=title, seed=options.seed, notes=notes))
    raise SystemExit(any("WRONG" in (row[f"at {b}"] or "") for row in kept.rows for b in BUDGETS))


if __name__ == "__main__":
    main()

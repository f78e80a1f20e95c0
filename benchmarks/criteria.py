"""Criteria x recoveries at equal MACs on CIFAR-10 ResNet-56, no fine-tuning, Torch-Pruning's importances in the same run.

The inner channels of the blocks may go; where, each criterion's own ranking decides. Needs the shared data folder.
``python benchmarks/criteria.py [--quick] [--test N] [--criteria ...] [--recoveries ...] [--macs ...]``
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

from common import cifar, resnet_cifar
from common.audit import macs
from common.cli import begin, name_of, parser, skip
from common.data import MissingDataError
from common.results import record
from common.scored import scored
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune

CRITERIA = (
    "joint", "variance", "l1", "l2", "taylor", "fpgm", "bn_scale", "kl", "spvr", "hrank", "chip", "nisp", "ippro", "random",
)  # fmt: skip
RECOVERIES = ("none", "mean_shift", "covariance", "sequential")
PEERS = ("GroupMagnitudeImportance", "GroupTaylorImportance", "FPGMImportance", "BNScaleImportance")
SCORED = {"kl": 128, "spvr": 128, "chip": 8, "hrank": 256, "joint": 1024}  # images; 512 for the others
INNER = ("conv1", "layer*.conv2")  # what makes a stage's stream; it stays


def peer(model: nn.Module, importance: str, share: float) -> nn.Module:
    """Returns Torch-Pruning's pruned network at most at a share of the MACs, by bisection of its global ratio."""
    import torch_pruning as tp

    x, y = next(iter(cifar.batches(*cifar.train_set(512), 512)))
    base, low, high, best = macs(model, x[:1]), 0.0, 0.95, None
    for _ in range(8):
        ratio, trial = (low + high) / 2, copy.deepcopy(model)
        inner = {block.conv1 for block in trial.modules() if isinstance(block, resnet_cifar.BasicBlock)}
        others = [m for m in trial.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and m not in inner]
        measure = getattr(tp.importance, importance)()
        pruner = tp.pruner.BasePruner(
            trial, x[:2], importance=measure, global_pruning=True, pruning_ratio=ratio, ignored_layers=others
        )
        if "Taylor" in importance:
            F.cross_entropy(trial(x), y).backward()
        pruner.step()
        if macs(trial, x[:1]) <= share * base:
            best, high = trial, ratio
        else:
            low = ratio
    if best is None:
        raise RuntimeError(f"no ratio reaches {share} of the MACs")
    return best


def main() -> None:
    """Prints and records the table."""
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--test", type=int, default=10_000, help="test images")
    made.add_argument("--macs", nargs="+", type=float, default=[0.7, 0.5, 0.3])
    made.add_argument("--criteria", nargs="+", default=list(CRITERIA))
    made.add_argument("--recoveries", nargs="+", default=list(RECOVERIES))
    options = begin(made)
    try:
        images, labels = cifar.test_set(500 if options.quick else options.test)
        model = resnet_cifar.resnet(56)
    except MissingDataError as error:
        skip(error)
    calibration = cifar.batches(*cifar.train_set(512 if options.quick else 2048), 256)
    rows: list[dict[str, Any]] = []

    def add(line: dict[str, Any], pruned: nn.Module) -> None:
        rows.append({**line, "top1": round(cifar.accuracy(pruned, images, labels), 2)})
        print(rows[-1], flush=True)

    for method in options.criteria[:2] if options.quick else options.criteria:
        data = cifar.batches(*cifar.train_set(SCORED.get(method, 512)), 128)
        criterion, seconds = scored(model, method, data, options.seed)
        for share in options.macs:
            for recover in options.recoveries:
                pruned = fxprune.compile(
                    model, calibration, fxprune.Budget(macs=share), method=criterion, ignore=INNER,
                    recover=None if recover == "none" else recover, seed=options.seed, progress=False,
                )  # fmt: skip
                kept = fxprune.report(pruned).macs
                line = {
                    "criterion": method, "recover": recover, "macs": share, "kept": round(kept[1] / kept[0], 4),
                    "scored in s": round(seconds, 1),
                }  # fmt: skip
                add(line, pruned)
    for importance in PEERS[:1] if options.quick else PEERS:
        for share in options.macs:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pruned = peer(model, importance, share)
            x: Tensor = images[:1]
            kept_share = macs(pruned, x) / macs(model, x)
            line = {
                "criterion": f"Torch-Pruning {importance}",
                "recover": "none",
                "macs": share,
                "kept": round(kept_share, 4),
            }
            add(line, pruned)
    notes = [
        f"{len(labels)} test images; inner channels only (ignore={INNER}), one global ranking each; recovery from 2,048 train "
        f"images, scores from 512 ({SCORED}).",
        "Torch-Pruning: the same layers, global ranking, its ratio bisected to the MACs.",
    ]
    title = "CIFAR-10 ResNet-56 at equal MACs without fine-tuning, top-1 in percent"
    print(record(name_of("criteria", options), rows, title=title, seed=options.seed, notes=notes))


if __name__ == "__main__":
    main()

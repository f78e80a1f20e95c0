"""SPvR's architecture (UAI 2025): VGG16-BN for CIFAR-10 with 70 to 98 % of its parameters gone, and what that makes faster.

Counts, layers that collapse and latency, no accuracies: those are `training.py`'s. Torch-Pruning stands beside it at the same
number of parameters. The dense network is trained shortly first, so that SPvR's scores mean something; training and
scoring keep what they have in ``--cache``, so that an interrupted run goes on. Needs the shared data folder.
``python benchmarks/vgg.py [--quick] [--weights FILE] [--images N --epochs N] [--samples N] [--group-size D]``
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import cifar
from common.audit import macs, params
from common.cli import begin, guarded, name_of, parser
from common.free import FREE
from common.results import record
from common.timing import median_seconds
from common.vgg import Vgg, load_half, save_half
from torch import nn

import fxprune
from fxprune.budget.cost import cost_model
from fxprune.capturing.captured import capture
from fxprune.coupling.interpreter import couple
from fxprune.scoring.spvr import Spvr

SHARES = (0.7, 0.8, 0.9, 0.95, 0.98)
LR, WARMUP, BATCH = 0.01, 0.5, 32  # the recipe's 0.1 at 128 does not leave the start within so few steps
ROUNDS = 11


@dataclass(frozen=True)
class Network:
    """One line of the table."""

    line: dict[str, Any]
    model: nn.Module


def trained(options: Any, cache: Path) -> Vgg:
    """Returns the dense network: weights of ``--weights`` if that is there, else trained now and written there."""
    width = 0.125 if options.quick else 1.0
    stem = f"vgg16-{width}-{options.images}x{options.epochs}-{options.seed}"
    path = options.weights or cache / f"{stem}.safetensors"
    model = Vgg(16, 10, width)
    if not path.exists():
        history = fxprune.retrain(
            model.to(memory_format=torch.channels_last),
            cifar.augmented(*cifar.train_set(options.images), BATCH),
            recipe="spvr",
            epochs=options.epochs,
            lr=LR,
            warmup=WARMUP,
            seed=options.seed,
            checkpoint_dir=cache / stem,
            progress=False,
        )
        print(history, flush=True)
        save_half(model, path)
    model = Vgg(16, 10, width)
    load_half(model, path)
    return model.eval().to(memory_format=torch.channels_last)


def depth(pruned: fxprune.PrunedModule) -> dict[str, int]:
    """Returns how many convolutions and poolings are left."""
    called = [pruned.get_submodule(str(n.target)) for n in pruned.graph.nodes if n.op == "call_module"]
    pool = torch.ops.aten.max_pool2d.default
    return {
        "convs": sum(isinstance(module, nn.Conv2d) for module in called),
        "pools": sum(node.target is pool for node in pruned.graph.nodes),
    }


def cheapest(pruned: nn.Module, x: torch.Tensor) -> int:
    """Returns the parameters of the cheapest unit that could come back to a layer that is still there.

    In a chain of convolutions a unit more costs what a unit less saves.
    """
    shrunk = {row.name for row in fxprune.report(pruned).groups if 0 < row.after < row.before}
    coupling = couple(capture(pruned, (x,)))
    cost = cost_model(coupling)
    whole = cost.of(np.zeros(len(coupling.channels), bool)).params
    found = [
        whole - cost.of(coupling.removed_mask(group.units[:1])).params
        for group in coupling.groups
        if group.name in shrunk
    ]
    return min(found)


def ours(model: nn.Module, data: Any, share: float, options: Any, cache: Path) -> Network:
    """Returns SPvR's network without ``share`` of the parameters; the scores come from the first call's file."""
    pruned = fxprune.compile(
        model,
        data,
        1 - share,
        method=Spvr(group_size=options.group_size),
        min_keep=0,
        recover="reinit",
        cache_dir=cache / "scores",
        seed=options.seed,
        progress=False,
        **FREE,
    )
    report = fxprune.report(pruned)
    if params(pruned) != report.params[1]:
        raise RuntimeError(f"the report says {report.params[1]} parameters, the network has {params(pruned)}")
    line = {
        "removed %": 100 * share,
        "by": "fxprune spvr",
        "params": report.params[1],
        "short of budget": int((1 - share) * report.params[0] + 1e-6) - report.params[1],
        "cheapest unit": cheapest(pruned, data[0][:2]),
        **depth(pruned),
        "MACs %": round(100 * report.macs[1] / report.macs[0], 2),
        "verified": report.verified,
    }
    widths = [row.after for row in report.groups if row.after]
    print(f"{share}: widths {widths}; bridged {report.plan.bridged}", flush=True)  # type: ignore[union-attr]
    return Network({**line, "widths": " ".join(map(str, widths))}, pruned)


def peer(model: nn.Module, share: float, x: torch.Tensor) -> Network:
    """Returns Torch-Pruning's network with at most as many parameters, by bisection of its global ratio."""
    import torch_pruning as tp

    base, low, high, best = params(model), 0.0, 1.0, None
    for _ in range(12):
        ratio, trial = (low + high) / 2, copy.deepcopy(model)
        tp.pruner.BasePruner(
            trial,
            x,
            importance=tp.importance.GroupMagnitudeImportance(),
            global_pruning=True,
            pruning_ratio=ratio,
            ignored_layers=[trial.classifier],
        ).step()
        if params(trial) <= (1 - share) * base:
            best, high = trial, ratio
        else:
            low = ratio
    line = {"removed %": 100 * share, "by": "Torch-Pruning magnitude"}
    if best is None:
        return Network({**line, "widths": "no ratio reaches the budget"}, model)
    widths = [m.out_channels for m in best.modules() if isinstance(m, nn.Conv2d)]
    pools = sum(isinstance(m, nn.MaxPool2d) for m in best.modules())
    line |= {
        "params": params(best),
        "short of budget": int((1 - share) * base + 1e-6) - params(best),
        "convs": len(widths),
        "pools": pools,
        "MACs %": round(100 * macs(best, x) / macs(model, x), 2),
        "widths": " ".join(map(str, widths)),
    }
    return Network(line, best.eval())


@torch.no_grad()
def latencies(networks: list[Network], batch: int, rounds: int) -> list[float]:
    """Returns each network's milliseconds on a batch: the median over rounds in which all take their turn."""
    x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)

    def runs(model: nn.Module) -> Callable[[], Any]:
        model.to(memory_format=torch.channels_last)
        return lambda: model(x)

    repeat = 15 if batch == 1 else 3
    seconds = [[median_seconds(runs(n.model), repeat, 1) for n in networks] for _ in range(rounds)]
    return [1000 * statistics.median(column) for column in zip(*seconds, strict=True)]


def main() -> None:
    """Prints and records the table."""
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--weights", type=Path, help="float16 safetensors of the dense network; made if absent")
    made.add_argument("--images", type=int, default=5_000, help="train images of the dense network")
    made.add_argument("--epochs", type=int, default=5, help="of the dense network")
    made.add_argument("--samples", type=int, default=64, help="train images that SPvR's scores are summed over")
    made.add_argument("--group-size", type=int, default=2, help="SPvR's d")
    made.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "fxprune-vgg")
    options = begin(made)
    with tempfile.TemporaryDirectory() as folder:
        if options.quick:  # which shall train and score, not find what the last quick run left
            options.images, options.epochs, options.samples, options.cache = 256, 1, 16, Path(folder)
        tabulated(options)


def tabulated(options: argparse.Namespace) -> None:
    """Prints and records the table."""
    images, labels = cifar.test_set(250 if options.quick else 2_000)
    model = trained(options, options.cache)
    data = [cifar.train_set(options.samples)[0]]
    top1 = cifar.accuracy(model, images, labels)
    print(f"dense: {params(model)} parameters, top-1 {top1:.2f} %", flush=True)
    x = images[:1]
    dense = {
        "removed %": 0,
        "by": "dense",
        "params": params(model),
        "short of budget": None,
        "cheapest unit": None,
        "convs": 13,
        "pools": 5,
        "MACs %": 100.0,
        "verified": None,
    }
    networks = [Network(dense, model)]
    for share in SHARES[-1:] if options.quick else SHARES:
        networks.append(ours(model, data, share, options, options.cache))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            networks.append(peer(model, share, x))
    rows = [{k: v for k, v in network.line.items() if k != "widths"} for network in networks]
    for batch in (1, 64):
        times = latencies(networks, batch, 2 if options.quick else ROUNDS)
        for row, ms in zip(rows, times, strict=True):
            row[f"ms at {batch}"] = round(ms, 2)
            row[f"x dense at {batch}"] = round(times[0] / ms, 2)
    notes = [
        f"Dense: SPvR's recipe, but {options.epochs} epochs on {options.images} images, lr {LR}, batch {BATCH}, crop and flip; top-1 {top1:.2f} % "
        f"on {len(labels)} test images. Weights do not matter for counts and latency beyond where SPvR's scores send the cut.",
        f"SPvR: sets of {options.group_size} (the paper's d is 2), scores over {options.samples} train images (the paper: 500), "
        "scored once; min_keep=0, recover='reinit'.",
        "Short of budget: parameters that the budget leaves over; less than the cheapest unit that could come back, if the "
        "cut is exact. Torch-Pruning: GroupMagnitudeImportance, one global ratio, bisected; the classifier stays.",
        f"Latency: float32, channels last, median of {ROUNDS} rounds in which all networks take their turn, torch eager on both sides.",
        *(f"Widths, {n.line['by']} at {n.line['removed %']:g} %: {n.line['widths']}." for n in networks[1:]),
    ]
    title = "VGG16-BN for CIFAR-10 at SPvR's budgets: counts, depth and latency"
    print(record(name_of("vgg", options), rows, title=title, seed=options.seed, notes=notes))


if __name__ == "__main__":
    guarded(main)

"""CIFAR-10 ResNet-56, no fine-tuning: which criterion and which recovery keep the accuracy.

The inner channels of every block (the first conv's output) lose the same ratio; statistics from train images.
Needs the shared data folder. ``python benchmarks/resnet56.py [--quick] [--criteria ...] [--ratios ...] [--rows FILE]``
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from common import cifar, resnet_cifar
from common.audit import params
from common.cli import begin, guarded, name_of, parser, resumable
from common.free import FREE
from common.kept import Kept
from common.results import record

import fxprune

CRITERIA = ("obs", "l1", "l2", "variance", "random")
RECOVERIES = (None, "mean_shift", "covariance", "sequential")
CALIBRATION = {
    None: 512,
    "mean_shift": 2560,
    "covariance": 2048,
    "sequential": 2048,
    "reconstruct": 2048,
}  # images, at most
STATISTICS = 2560  # images for a criterion that wants activations
WANTS = ("variance", "obs")


def run(
    model: Any, images: Any, labels: Any, method: str, recover: str | None, most: int = STATISTICS, **target: Any
) -> dict[str, Any]:
    """Compiles once, with ``most`` train images at most, and returns one line of the table."""
    count = min(most, max(CALIBRATION[recover], STATISTICS if method in WANTS else 0))
    train = cifar.batches(*cifar.train_set(count), 32 if recover == "reconstruct" else 256)
    train = [x for x, _ in train]
    start = time.perf_counter()
    pruned = fxprune.compile(
        model, train, target.pop("budget", None), method=method, recover=recover, progress=False, **target, **FREE
    )
    seconds, report = time.perf_counter() - start, fxprune.report(pruned)
    return {
        "top1": round(cifar.accuracy(pruned, images, labels), 2),
        "params": params(pruned),
        "kept params": round(params(pruned) / params(model), 4),
        "kept macs": round(report.macs[1] / report.macs[0], 4),
        "verified": report.verified,
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Prints and records the table."""
    made = resumable(parser(__doc__.splitlines()[0]))
    made.add_argument("--ratios", nargs="+", type=float, default=[0.2, 0.4, 0.6])
    made.add_argument("--criteria", nargs="+", default=list(CRITERIA))
    options = begin(made)
    if options.quick:
        options.ratios, options.criteria = [0.4], ["l1"]
    images, labels = cifar.test_set(250 if options.quick else 10_000)
    model = resnet_cifar.resnet(resnet_cifar.depth_of(options))
    kept = Kept(options.rows)
    kept.add(
        {"target": "dense"}, lambda: {"top1": round(cifar.accuracy(model, images, labels), 2), "params": params(model)}
    )
    targets = [(f"ratio {r}", {"ratios": {"layer*.conv1": r, "default": 0.0}}) for r in options.ratios]
    targets += [] if options.quick else [("budget 0.5", {"budget": 0.5})]
    most = 128 if options.quick else STATISTICS
    for name, target in targets:
        for method in options.criteria:
            for recover in RECOVERIES[:: 3 if options.quick else 1]:
                key = {"target": name, "criterion": method, "recover": recover or "none"}
                made_by = partial(run, model, images, labels, method, recover, most, seed=options.seed, **target)
                kept.add(key, made_by)
    notes = [
        f"{len(labels)} test images; the dense network is published with 93.39 on all 10,000.",
        "Ratios: share of inner channels (each block's first conv) removed, alike in all 27 blocks. "
        "Budget 0.5: half of the parameters by one global ranking, stage widths included.",
        f"Calibration images: {CALIBRATION}; {WANTS} always see {STATISTICS}; without labels.",
        *kept.notes,
    ]
    title = "CIFAR-10 ResNet-56 pruned without fine-tuning, top-1 in percent"
    print(record(name_of("resnet56", options), kept.rows, title=title, seed=options.seed, notes=notes))


if __name__ == "__main__":
    guarded(main)

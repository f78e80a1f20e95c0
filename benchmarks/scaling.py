"""Time and memory against depth: architectures of full width on the meta device, coupled and solved without a weight.

Each size in a process of its own. ``python benchmarks/scaling.py [--quick] [--repeats N]``
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common.cli import begin, guarded, name_of, parser
from common.results import record
from torch import nn

import fxprune

BUDGET = 0.7


def _resnet(depth: int) -> tuple[nn.Module, dict[str, Any]]:
    import torchvision

    return torchvision.models.get_model(f"resnet{depth}"), {"x": torch.zeros(2, 3, 224, 224)}


def _vit(depth: int) -> tuple[nn.Module, dict[str, Any]]:
    from torchvision.models import VisionTransformer

    return VisionTransformer(224, 16, depth, 12, 768, 3072), {"x": torch.zeros(2, 3, 224, 224)}


def _llama(depth: int) -> tuple[nn.Module, dict[str, Any]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=depth)), {"input_ids": torch.zeros(2, 16, dtype=torch.long)}


FAMILIES = {"ResNet": (_resnet, (50, 101, 152)), "ViT-B": (_vit, (12, 24, 48)), "LLaMA-7B": (_llama, (8, 16, 32))}


def measure(family: str, depth: int) -> dict[str, Any]:
    """Returns nodes, channels, seconds by stage and the growth of resident memory, of one model."""
    with torch.device("meta"):
        model, inputs = FAMILIES[family][0](depth)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds: dict[str, float] = {}

    def timed(stage: str, work: Any) -> Any:
        start = time.perf_counter()
        result = work()
        seconds[stage] = time.perf_counter() - start
        return result

    kwargs = {name: value.to("meta") for name, value in inputs.items()}
    captured = timed("capture", lambda: fxprune.capture(model.eval(), (), kwargs))
    coupling = timed("couple", lambda: fxprune.couple(captured))
    scores = fxprune.score(coupling, [], "random")
    solution = timed("solve", partial(fxprune.solve, coupling, scores, fxprune.Budget(params=BUDGET)))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "nodes": len(captured.module.graph.nodes),
        "channels": len(coupling.channels),
        "units": len(coupling.units),
        **seconds,
        "grown MB": (after - before) / 1024,
        "peak MB": after / 1024,
        "kept": solution.after.params / solution.before.params,
    }


def in_process(family: str, depth: int, threads: int) -> dict[str, Any]:
    """Measures one model in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", family, str(depth), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(done.splitlines()[-1])
    return found


def row(family: str, depth: int, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns one line of the table: medians over processes."""
    median = {key: statistics.median(one[key] for one in found) for key in found[0]}
    work = median["couple"] + median["solve"]
    return {
        "family": family,
        "depth": depth,
        **{key: int(median[key]) for key in ("params", "nodes", "channels", "units")},
        **{f"{stage} s": round(median[stage], 2) for stage in ("capture", "couple", "solve")},
        "capture ms a node": round(1e3 * median["capture"] / median["nodes"], 2),
        "couple + solve us a channel": round(1e6 * work / median["channels"], 1),
        "grown MB": round(median["grown MB"]),
        "peak MB": round(median["peak MB"]),
        "kept": round(median["kept"], 4),
    }


def main() -> None:
    """Prints and records the table."""
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--worker", nargs=2, metavar=("FAMILY", "DEPTH"))
    options = begin(made)
    if options.worker:
        print(json.dumps(measure(options.worker[0], int(options.worker[1]))))
        return
    sizes = [(family, depth) for family, (_, depths) in FAMILIES.items() for depth in depths]
    sizes = [("ResNet", 18)] if options.quick else sizes
    rows = []
    for family, depth in sizes:
        if options.quick:
            found = [measure(family, depth)]
        else:
            found = [in_process(family, depth, options.threads) for _ in range(options.repeats)]
        rows.append(row(family, depth, found))
        print(rows[-1], flush=True)
    notes = [
        f"Built on the meta device, batch of 2; random scores, a budget of {BUDGET} of the parameters; medians of processes.",
        "A channel is an id of the coupling's store, those that were united included. grown: resident memory above what the "
        "imports and the model's skeleton take.",
    ]
    title = "Time and memory against depth, at full width without weights"
    print(record(name_of("scaling", options), rows, title=title, seed=options.seed, notes=notes))


if __name__ == "__main__":
    guarded(main)

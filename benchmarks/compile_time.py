"""Seconds for each stage of the compiler, peak memory, and Torch-Pruning's build and prune in the same run.

Or the same stages beside those of another revision, compiled in turns: ``--against``. Or whole compilations with default options on
so many images of 224 pixels, in forward passes of these: ``--images``.
``python benchmarks/compile_time.py [--models NAME...] [--repeats N] [--against REVISION] [--images N] [--quick]``
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from common import ROOT, torch_pruning, zoo
from common.cli import begin, guarded, name_of, needs, parser
from common.results import record
from common.revisions import unpacked
from common.timing import measured, median_seconds
from common.turns import Compiler, in_turns
from torch import nn

import fxprune
from tests.support.weights import randomise

MODELS = ["resnet50", "densenet121", "vit_b_16", "swin_t"]
WHOLE = ["resnet50", "vit_b_16", "vgg16", "convnext_tiny"]
SHORT = 0.01  # seconds; a shorter stage is not compared


def stages(entry: zoo.Entry, seed: int, repeats: int) -> dict[str, Any]:
    """Returns the seconds of each stage of one compilation, as its report records them."""
    model, batch = entry.build(), entry.batch(2, seed=seed)
    randomise(model, seed, *(((), batch) if isinstance(batch, dict) else ((batch,), None)))
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    gc.collect()
    spans, runs = [], []
    for _ in range(repeats):
        with measured() as span:
            pruned = fxprune.compile(model, [batch], 0.5, method="magnitude", recover=None, progress=False, seed=seed)
        spans.append(span)
        runs.append(fxprune.report(pruned).seconds)
        del pruned
    return {
        "seconds": {stage: statistics.median(run[stage] for run in runs) for stage in runs[0]},
        "total": statistics.median(span.seconds for span in spans),
        "peak": max(span.peak_bytes for span in spans),
        "bytes": size,
    }


def activations(entry: zoo.Entry, seed: int) -> int:
    """Returns the bytes of all module outputs of one batch: what an activation-hungry pass may hold at once."""
    model, total = entry.build(), 0

    def add(_module: Any, _inputs: Any, output: Any) -> None:
        nonlocal total
        total += sum(t.numel() * t.element_size() for t in zoo.tensors(output))

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(add)
    with torch.no_grad():
        zoo.call(model, entry.batch(2, seed=seed))
    return total


def line(entry: zoo.Entry, seed: int, threads: int, repeats: int) -> dict[str, Any]:
    """Measures one network, fxprune and its peer, and returns one line of the table."""
    ours = stages(entry, seed, repeats)
    peer = torch_pruning.prune(entry.name, 0.5, threads=threads, attempts=3, limit=60)
    seconds = ours["seconds"]
    middle = sum(seconds.get(stage, 0.0) for stage in ("couple", "solve", "rewrite"))
    rest = sum(value for stage, value in seconds.items() if stage not in ("check", "capture"))
    theirs = None if peer.build_seconds is None else peer.build_seconds + (peer.prune_seconds or 0.0)
    return {
        "model": entry.name,
        **{stage: round(value, 3) for stage, value in seconds.items()},
        "after capture / capture": round(rest / seconds["capture"], 2),
        "without verify": round((rest - seconds["verify"]) / seconds["capture"], 2),
        "couple + solve + rewrite": round(middle, 3),
        "Torch-Pruning": round(theirs, 3) if theirs is not None and peer.runs else f"fails: {peer.error[:50]}",
        "peak MB": round(ours["peak"] / 1e6),
        "3 x params + activations MB": round((3 * ours["bytes"] + activations(entry, seed)) / 1e6),
        "total": round(ours["total"], 2),
    }


def whole(name: str, images: int, seed: int) -> dict[str, Any]:
    """Returns what each stage of one compilation with default options takes, in forward passes of its data."""
    model = getattr(torchvision.models, name)(weights=None).eval()
    make = torch.Generator().manual_seed(seed)
    data = [torch.randn(min(8, images), 3, 224, 224, generator=make) for _ in range(-(-images // 8))]
    randomise(model, seed, (data[0][:2],))
    once = partial(_forward, model, data)
    before = median_seconds(once, repeat=2)
    with measured() as span:
        pruned = fxprune.compile(model, data, fxprune.Budget(macs=0.5), progress=False, seed=seed)
    forward = statistics.median([before, median_seconds(once, repeat=2, warmup=0)])
    seconds = fxprune.report(pruned).seconds
    passes = {stage: round(value / forward, 2) for stage, value in seconds.items()}
    found = {stage: passes[stage] for stage in ("score", "recover", "verify", "judge") if stage in passes}
    first = sum(seconds[stage] for stage in ("check", "capture"))
    return {
        "model": name,
        "forward s": round(forward, 2),
        **found,
        "other stages": round(sum(passes.values()) - sum(found.values()) - first / forward, 2),
        "check + capture s": round(first, 2),
        "total s": round(span.seconds, 1),
        "peak MB": round(span.peak_bytes / 1e6),
    }


def _forward(model: nn.Module, data: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for x in data:
            model(x)


def compared(name: str, then: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields a line for each stage of one network's compilation: what it was, what it is, and the ratio."""
    trees = {"then": then, "now": ROOT, "again": then}
    with ExitStack() as stack:
        compilers = {
            key: stack.enter_context(Compiler(tree, name, options.seed, options.threads)) for key, tree in trees.items()
        }
        found = in_turns(compilers, options.repeats)
    for stage in found["now"][0]:
        values = {key: [answer.get(stage, 0.0) for answer in answers] for key, answers in found.items()}
        if statistics.median(values["then"]) < SHORT:
            continue
        yield {
            "model": name,
            "stage": stage,
            "then": round(statistics.median(values["then"]), 3),
            "now": round(statistics.median(values["now"]), 3),
            "now / then": _ratio(values["now"], values["then"]),
            "then again / then": _ratio(values["again"], values["then"]),
        }


def _ratio(values: list[float], others: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(values, others, strict=True)), 3)


def against(options: argparse.Namespace) -> None:
    """Prints and records the stages of this tree beside those of a revision."""
    rows = []
    with unpacked(options.against) as tree:
        for name in options.models:
            for row in compared(name, tree, options):
                rows.append(row)
                print(row, flush=True)
    notes = [
        f"Three processes for each network take turns in {options.repeats} rounds after one that does not count: the package as "
        f"it was at {options.against}, as it is, and as it was once more. Seconds (peak: MB) are medians over the rounds, ratios "
        "medians of the rounds' ratios; `then again / then` is of the same code twice, which is the noise.",
        f"Magnitude, recover=None, one batch of 2, half of the parameters; stages of at least {SHORT * 1000:.0f} ms.",
    ]
    title = f"A compilation now and at {options.against}, in turns"
    print(record(name_of("compile_time_against", options), rows, title=title, seed=options.seed, notes=notes))


def wholly(options: argparse.Namespace) -> None:
    """Prints and records whole compilations."""
    names = WHOLE if options.models == MODELS else options.models
    rows = [_in_process(name, options) for name in names]
    notes = [
        f"Half of the MACs, all options as by default, {options.images} random images in batches of eight, random weights; each in "
        "a fresh process after one compile of a toy network. Stages are in forward passes of these images, before and after, medians "
        "of four; check and capture do not grow with the data.",
        "verify compares on the first batch and at other sizes, in float64 as well where float32 leaves doubt, as random weights do.",
    ]
    title = "Whole compilations, in forward passes of the calibration data"
    print(record(name_of("compile_time_whole", options), rows, title=title, seed=options.seed, notes=notes))


def main() -> None:
    """Prints and records the table; each network is measured in a fresh process, the first call warmed up."""
    made = parser(__doc__.splitlines()[0], MODELS)
    made.add_argument("--repeats", type=int, default=5, help="compilations of each network")
    made.add_argument("--against", metavar="REVISION", help="a revision of the repository to compare with, in turns")
    made.add_argument(
        "--images", type=int, help="whole compilations with default options, on so many images of 224 pixels"
    )
    made.add_argument("--worker", help=argparse.SUPPRESS)
    options = begin(made)
    options.repeats = 1 if options.quick else options.repeats
    if options.worker:
        print(json.dumps(warm_line(options.worker, options)))
        return
    if options.images:
        wholly(options)
        return
    if options.against:
        against(options)
        return
    needs("torch_pruning")
    measure = warm_line if options.quick else _in_process
    rows = [measure(name, options) for name in options.models]
    notes = [
        f"Seconds of a compile to half of the parameters (magnitude, recover=None, one batch of 2), medians of {options.repeats}, "
        "in a fresh process after one compile of a toy network. Torch-Pruning: dependency graph + prune step of one "
        "attempt, within 60 s.",
        "verify is two forward passes of the batch, the masked twin's at full size and the pruned model's (and two more "
        "in float64 where float32 leaves doubt); `without verify` leaves it out of the ratio before.",
        "peak: resident memory above the start of compile, sampled every 5 ms; the bound beside it is 3 times the "
        "parameters' bytes plus all module outputs of the batch.",
    ]
    title = "Where the seconds of a compilation go"
    print(record(name_of("compile_time", options), rows, title=title, seed=options.seed, notes=notes))


def warm_line(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measures one network in this process, warmed up."""
    fxprune.compile(*_toy(), progress=False, recover=None, method="magnitude")
    if options.images:
        return whole(name, options.images, options.seed)
    (entry,) = zoo.select([name])
    return line(entry, options.seed, options.threads, options.repeats)


def _toy() -> tuple[Any, ...]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return net, [torch.randn(4, 3, 8, 8)], 0.8


def _in_process(name: str, options: argparse.Namespace) -> dict[str, Any]:
    start = time.perf_counter()
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", name, "--seed", str(options.seed)]
    command += ["--repeats", str(options.repeats)]
    command += ["--images", str(options.images)] if options.images else []
    done = subprocess.run([*command, "--threads", str(options.threads)], capture_output=True, text=True, check=False)
    lines = [text for text in done.stdout.splitlines() if text.startswith("{")]
    if not lines:
        return {"model": name, "error": (done.stderr.strip().splitlines() or ["no output"])[-1][:100]}
    print(f"{name}: {time.perf_counter() - start:.0f} s in all", flush=True)
    row: dict[str, Any] = json.loads(lines[-1])
    return row


if __name__ == "__main__":
    guarded(main)

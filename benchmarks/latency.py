"""Latency: budgets of it that are predicted, met and measured; and what the MACs promise beside what a clock shows.

``python benchmarks/latency.py [--quick] [--models ...] [--parts budgets speed] [--shares ...] [--backends ...]
[--batch-sizes ...] [--repeats N] [--seconds S] [--threads N] [--rows FILE]``. Use a machine that does nothing else.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision
from common.audit import macs
from common.bisection import STEPS, within_macs
from common.cli import begin, guarded, name_of, needs, parser, resumable
from common.kept import Kept
from common.results import record
from torch import nn

import fxprune

MODELS = ["resnet50", "mobilenet_v2", "vit_b_16"]
MLP = 0.55  # of the hidden units of ViT's MLPs go
MACS = 0.5  # of the MACs of the convolutional networks stay
WITHIN = 0.15  # a prediction may differ from what is measured by this share
PROMISED = 0.85  # of the speed-up that the MACs promise, at batch 16


def build(name: str, size: int) -> tuple[nn.Module, torch.Tensor]:
    """Returns a network of torchvision, its weights random, and a batch of images of that size."""
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None).eval(), torch.randn(2, 3, size, size)


def budget_row(name: str, share: float, backend: str, batch: int, options: Any) -> dict[str, Any]:
    """Returns what came of a share of the latency: predicted, measured, and whether both are as they should be."""
    model, x = build(name, options.size)
    budget = fxprune.Budget(latency=share, batch_size=batch, backend=backend, threads=options.threads)
    try:
        pruned = fxprune.compile(
            model,
            [x],
            budget,
            method="l1",
            recover=None,
            verify=False,
            round_to=options.round_to,
            seed=options.seed,
            progress=False,
        )
    except fxprune.BudgetError as error:
        return {"error": str(error)[:120]}
    report = fxprune.report(pruned)
    found = report.latency
    assert found is not None
    return {
        "dense ms": round(found.dense_ms, 3),
        "limit ms": round(found.limit_ms, 3),
        "predicted ms": round(found.predicted_ms, 3),
        "measured ms": round(found.measured_ms, 3),
        "off by": round(found.predicted_ms / found.measured_ms - 1, 4),
        "predicted": abs(found.predicted_ms / found.measured_ms - 1) <= WITHIN,
        "met": found.met,
        "macs kept": round(report.macs[1] / report.macs[0], 4),
        "solve s": round(report.seconds["solve"], 1),
        "round_to": _multiple(report, options.round_to),
    }


def _multiple(report: fxprune.Report, round_to: int | str) -> int | None:
    """Returns what the widths are multiples of: as asked for, or what `round_to="measure"` chose."""
    if round_to != "measure":
        return int(round_to)
    found = [n.split(":")[0].removeprefix("round_to=") for n in report.notes if n.startswith("round_to=")]
    return int(found[0]) if found else None


def ours(name: str, size: int, round_to: int | str) -> Callable[[], nn.Module]:
    """Returns what makes the pruned model whose speed is measured."""

    def make() -> nn.Module:
        model, x = build(name, size)
        options: dict[str, Any] = {"method": "l1", "recover": None, "round_to": round_to, "progress": False}
        if name.startswith("vit"):
            return fxprune.compile(model, [x], ratios={"encoder.layers.*.mlp.0": MLP}, **options)
        return fxprune.compile(model, [x], fxprune.Budget(macs=MACS), **options)

    return make


def peer(name: str, options: Any, share: float, multiple: int | None = None) -> nn.Module:
    """Returns Torch-Pruning's network at most at a share of the MACs; for a ViT its MLPs alone lose units."""
    import torch_pruning as tp

    model, x = build(name, options.size)

    def prune(ratio: float) -> nn.Module:
        trial = copy.deepcopy(model)
        layers = {n: m for n, m in trial.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
        mlps = [m for n, m in layers.items() if n.endswith("mlp.0")] if name.startswith("vit") else []
        kept = [m for m in layers.values() if m not in mlps] if mlps else list(layers.values())[-1:]
        measure = tp.importance.GroupMagnitudeImportance(p=1)
        pruner = tp.pruner.MetaPruner(
            trial, x, importance=measure, pruning_ratio=ratio, ignored_layers=kept, round_to=multiple
        )
        pruner.step()
        return trial

    return within_macs(prune, model, x[:1], share, 2 if options.quick else STEPS)


def speed_rows(name: str, kept: Kept, options: Any) -> None:
    """Adds the rows of one network: the dense one, ours and the peer's, in turns."""
    cases = list(itertools.product(options.backends, options.batch_sizes))
    labels = ["dense", *(f"{tool}{widths}" for widths in ("", ", wide") for tool in ("fxprune", "Torch-Pruning"))]
    keys = {
        (backend, batch, label): {"part": "speed", "model": name, "backend": backend, "batch": batch, "what": label}
        for (backend, batch), label in itertools.product(cases, labels)
    }
    if all(kept.has(key) for key in keys.values()):
        for key in keys.values():
            kept.add(key, dict)
        return
    dense, x = build(name, options.size)
    made = {"fxprune": 1, "fxprune, wide": options.round_to}
    models = {"dense": dense} | {label: ours(name, options.size, widths)() for label, widths in made.items()}
    base = macs(dense, x[:1])
    share, multiple = (
        macs(models["fxprune"], x[:1]) / base,
        _multiple(fxprune.report(models["fxprune, wide"]), options.round_to),
    )
    for label, width in (("Torch-Pruning", None), ("Torch-Pruning, wide", multiple)):
        try:
            models[label] = peer(name, options, share, width)
        except Exception as error:  # the peer fails in many ways, and its absence is a result
            print(f"{label} on {name}: {type(error).__name__}: {error}"[:200])
    shares = {label: macs(model, x[:1]) / base for label, model in models.items()}
    for backend, batch in cases:
        found = fxprune.bench(
            models,
            x,
            batch_sizes=(batch,),
            backends=(backend,),
            threads=options.threads,
            repeats=options.repeats,
            seconds=options.seconds,
        )
        for line in found.failed:
            print(line)
        for row in found.rows:
            kept.add(keys[backend, batch, row.model], partial(_speed, row, shares[row.model], multiple))


def _speed(row: fxprune.latency.BenchRow, share: float, multiple: int | None) -> dict[str, Any]:
    return {
        "round_to": multiple if "wide" in row.model else 1,
        "macs kept": round(share, 4),
        "ms": round(row.ms, 3),
        "error": round(row.error, 4),
        "speed-up": round(row.speedup, 3),
        "of the MACs' promise": round(share * row.speedup, 3),
        "weights MiB": round(row.parameter_bytes / 2**20, 1),
        "peak MiB": "" if row.peak_bytes is None else round(row.peak_bytes / 2**20, 1),
    }


def main() -> None:
    """Prints and records both tables."""
    made = resumable(parser(__doc__.splitlines()[0]))
    made.add_argument("--models", nargs="+", default=MODELS, help="names of torchvision's models")
    made.add_argument("--parts", nargs="+", default=["budgets", "speed"], choices=["budgets", "speed"])
    made.add_argument("--size", type=int, default=224, help="height and width of the images")
    made.add_argument("--shares", nargs="+", type=float, default=[0.8, 0.6, 0.4])
    made.add_argument("--backends", nargs="+", default=["eager", "compiled", "onnxruntime"])
    made.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 16])
    made.add_argument("--round-to", default="measure", type=lambda text: text if text == "measure" else int(text))
    made.add_argument("--repeats", type=int, default=25, help="samples of each model, at least")
    made.add_argument("--seconds", type=float, default=20.0, help="for each model and setting, about")
    options = begin(made)
    if options.quick:
        options.models, options.size, options.round_to = ["resnet18"], 64, 8
        options.shares, options.backends = options.shares[:1], options.backends[:1]
        options.batch_sizes, options.repeats, options.seconds = options.batch_sizes[:1], 5, 0.5
    if "speed" in options.parts:
        needs("torch_pruning")
    kept = Kept(options.rows)
    if "budgets" in options.parts:
        for name, backend, share in itertools.product(options.models, options.backends, options.shares):
            key = {"part": "budget", "model": name, "backend": backend, "batch": 1, "latency": share}
            kept.add(key, partial(budget_row, name, share, backend, 1, options))
    if "speed" in options.parts:
        for name in options.models:
            speed_rows(name, kept, options)
    _record(kept, options)


def _record(kept: Kept, options: Any) -> None:
    for part, title in (
        ("budget", "A share of the latency: predicted, measured, met"),
        ("speed", "Speed-up beside what the MACs promise"),
    ):
        rows = [{k: v for k, v in row.items() if k != "part"} for row in kept.rows if row["part"] == part]
        if rows:
            name = name_of(f"latency_{part}", options)
            print(record(name, rows, title=title, seed=options.seed, notes=[*_notes(part, rows), *kept.notes]))


def _notes(part: str, rows: list[dict[str, Any]]) -> list[str]:
    if part == "budget":
        run = [row for row in rows if "met" in row]
        return [
            f"{sum(row['predicted'] for row in run)} of {len(run)} predictions within {WITHIN:.0%} of the measured latency; "
            f"{sum(row['met'] for row in run)} limits met when measured; L1, nothing recovered."
        ]
    pruned = [row for row in rows if row["what"] != "dense"]
    slower = [
        f"{row['model']} ({row['what']}, {row['backend']}, {row['batch']})" for row in pruned if row["speed-up"] < 1
    ]
    return [
        f"ViT: {MLP:.0%} of the MLPs' hidden units gone; the others at {MACS:.0%} of the MACs. Models of one setting were timed in "
        f"turns; the ratio is the median over the rounds. Wide: kept channels are multiples of what round_to='measure' measured for ours. Wanted: {PROMISED} of the MACs' promise for the ViT at batch 16.",
        f"Slower than dense: {', '.join(slower) or 'none'}.",
    ]


if __name__ == "__main__":
    guarded(main)

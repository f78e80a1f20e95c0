"""IPPRO on CIFAR-10 ResNet-56: which reading of its score keeps the accuracy, and why the literal one does not.

The inner channels of every block (the first conv's output) lose the same ratio; no fine-tuning unless asked for.
Needs the shared data folder. ``python benchmarks/ippro.py [--part why | finetune] [--quick]``
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import cifar, resnet_cifar
from common.cli import begin, guarded, name_of, parser
from common.results import record
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.algebra.channels import Mask
from fxprune.budget.solver import solve
from fxprune.capturing.captured import capture
from fxprune.capturing.inputs import PlainInputs
from fxprune.compiler.by_hand import recover
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.interpreter import couple
from fxprune.coupling.selection import Selection
from fxprune.rewriting.emission import emit
from fxprune.rewriting.slicing import slice_graph
from fxprune.scoring import score
from fxprune.scoring.ippro import Ippro, collect, combine
from fxprune.scoring.scorer import Context
from fxprune.scoring.variance import Variance
from fxprune.twin.interpreter import Run

Scores = Mapping[str, Tensor]
READINGS = ("literal", "reversed", "absolute", "absolute_offset")
PASSES = (  # target, batch norm in training mode, data
    ("gamma", False, "plain"),
    ("gamma_beta", False, "plain"),
    ("weight", False, "plain"),
    ("gamma", True, "plain"),
    ("gamma", False, "augmented"),
    ("gamma", True, "augmented"),
    ("gamma", False, "balanced"),
)
BATCH = 32  # of fine-tuning
COVARIANCE = 1024  # images for recovery
TRUTH = {
    56: ("layer1.4.conv1", "layer2.4.conv1"),
    20: ("layer1.1.conv1",),
}  # units that are masked one by one, by depth


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """What every cell of the table shares."""

    coupling: Coupling  # of the dense network
    train: tuple[Tensor, Tensor]  # images and labels for statistics and recovery
    test: tuple[Tensor, Tensor]
    count: int  # images a scoring pass sees
    truth: tuple[str, ...]  # groups whose units are masked one by one
    seed: int

    def inputs(self, images: Tensor, labels: Tensor) -> PlainInputs:
        """Returns batches of 128."""
        return PlainInputs([(x,) for x in images.split(128)], labels.split(128))

    def data(self, kind: str) -> PlainInputs:
        """Returns the images of a pass: the first ones, the same augmented, a class-balanced draw, or the next ones."""
        images, labels = self.train
        if kind == "balanced":
            each = self.count // 10
            rows = torch.cat([(labels == c).nonzero().flatten()[:each] for c in range(10)])
            rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed))]
            return self.inputs(images[rows], labels[rows])
        start = self.count if kind == "next" else 0
        images, labels = images[start : start + self.count], labels[start : start + self.count]
        return self.inputs(augmented(images, self.seed) if kind == "augmented" else images, labels)

    def removed(self, scores: Scores, ratio: float) -> Mask:
        """Returns a flag for each channel that goes."""
        return solve(self.coupling, scores, ratios={"layer*.conv1": ratio, "default": 0.0}).removed

    def pruned(self, scores: Scores, ratio: float, method: str | None) -> nn.Module:
        """Returns the network without the lowest share of every block's inner channels."""
        removed = self.removed(scores, ratio)
        images, labels = self.train
        inputs = self.inputs(images[:COVARIANCE], labels[:COVARIANCE])
        recovery = recover(self.coupling, removed, inputs, method)
        graph = slice_graph(Selection(self.coupling, removed, recovery.tensors))
        return emit(self.coupling.captured, graph)

    def top1(self, scores: Scores, ratio: float, method: str | None) -> float:
        """Returns the accuracy in percent."""
        return round(cifar.accuracy(self.pruned(scores, ratio, method), *self.test), 2)


def augmented(images: Tensor, seed: int) -> Tensor:
    """Returns random crops of the images padded by 4, half of them flipped."""
    generator = torch.Generator().manual_seed(seed)
    padded = F.pad(images, (4, 4, 4, 4))
    tops, lefts = torch.randint(0, 9, (2, len(images)), generator=generator).tolist()
    flips = (torch.rand(len(images), generator=generator) < 0.5).tolist()
    crops = [x[:, i : i + 32, j : j + 32] for x, i, j in zip(padded, tops, lefts, strict=True)]
    return torch.stack([x.flip(2) if flip else x for x, flip in zip(crops, flips, strict=True)])


def spearman(a: Tensor, b: Tensor) -> float:
    """Returns the rank correlation."""
    ranks = torch.stack([x.argsort().argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


@torch.no_grad()
def masking(setting: Setting, group: str, images: int = 128) -> tuple[Tensor, Tensor]:
    """Returns by how much masking each unit alone raises the mean loss, and how far it moves the outputs (KL)."""
    coupling = setting.coupling
    x, y = setting.train[0][:images], setting.train[1][:images]
    dense = Run(Selection.nothing(coupling))((x,))[0].double().log_softmax(1)
    rises, moves = [], []
    for unit in next(g.units for g in coupling.groups if g.name == group).tolist():
        (logits,) = Run(Selection(coupling, coupling.removed_mask([unit])))((x,))
        masked = logits.double().log_softmax(1)
        rises.append(F.nll_loss(masked, y) - F.nll_loss(dense, y))
        moves.append(F.kl_div(masked, dense, reduction="batchmean", log_target=True))
    return torch.stack(rises), torch.stack(moves)


def cells(setting: Setting, quick: bool) -> Iterator[dict[str, Any]]:
    """Yields the lines of the table: baselines, every pass and reading at ratio 0.2, then chosen ones further."""
    l1 = score(setting.coupling, [], "l1")
    seeds = range(1 if quick else 3)
    random = {f"random, seed {s}": score(setting.coupling, [], "random", s) for s in seeds}
    for name, scores in {"l1": l1, **random}.items():
        yield {"criterion": name, **across(setting, scores, name in ("l1", "random, seed 0"))}
    first: Any = None
    for target, statistics, data in PASSES[: 1 if quick else None]:
        start = time.perf_counter()
        context = Context(setting.coupling, setting.data(data))
        collected = collect(context, Ippro(target=target, batch_statistics=statistics))
        first = first or collected
        where = {
            "target": target,
            "batch norm": "training" if statistics else "evaluation",
            "data": data,
            "pass seconds": round(time.perf_counter() - start),
        }
        for reading in READINGS:
            scores = combine(context, collected, Ippro(target=target, reading=reading))
            found = {"0.2": setting.top1(scores, 0.2, None)}
            if collected is first or reading == "absolute":
                found = across(setting, scores, collected is first and reading in ("literal", "absolute"))
            yield {"criterion": "ippro", "reading": reading, **where, **found}
    context = Context(setting.coupling, setting.data("plain"))
    for step in (1.0, 1e3):
        scores = combine(context, first, Ippro(reading="literal", step=step))
        line = {"criterion": "ippro", "reading": f"literal, step {step:g}", "target": "gamma"}
        yield {**line, "batch norm": "evaluation", "data": "plain", "0.2": setting.top1(scores, 0.2, None)}
    yield from explanations(setting, context, first, l1)


def across(setting: Setting, scores: Scores, covariance: bool) -> dict[str, float]:
    """Returns the accuracy at both ratios, without recovery and, if asked for, with covariance."""
    found = {f"{ratio}": setting.top1(scores, ratio, None) for ratio in (0.2, 0.4)}
    if covariance:
        found["0.4 cov"] = setting.top1(scores, 0.4, "covariance")
    return found


def explanations(setting: Setting, context: Context, first: Any, l1: Scores) -> Iterator[dict[str, Any]]:
    """Yields what the scores measure: agreement of two halves of the data, and with the loss when a unit is masked."""
    again = collect(Context(setting.coupling, setting.data("next")), Ippro())
    inner = [g.name for g in setting.coupling.groups if g.name.startswith("layer")]
    truths = {name: masking(setting, name) for name in setting.truth}
    compared: dict[str, Scores] = {"l1": l1}
    for reading in READINGS:
        one, two = (combine(context, found, Ippro(reading=reading)) for found in (first, again))
        compared[f"ippro, {reading}"] = one
        agreement = float(np.mean([spearman(one[name], two[name]) for name in inner]))
        yield {"criterion": f"ippro, {reading}", "agreement": round(agreement, 3)}
    for name, scores in compared.items():
        both = [[spearman(scores[group], part) for part in truth] for group, truth in truths.items()]
        rise, move = np.mean(both, axis=0).tolist()
        yield {"criterion": name, "loss rise": round(rise, 3), "output moved": round(move, 3)}


class Faded(Run):
    """The masked twin with only a share of every removed channel masked."""

    share = 1.0

    def _masked(self, node: Any, source: Any, values: Mapping[Any, Any]) -> Tensor:
        return values[source] + self.share * (super()._masked(node, source, values) - values[source])


@torch.no_grad()
def why(setting: Setting, images: int = 256) -> Iterator[dict[str, Any]]:
    """Yields what a ratio of 0.2 removes, and the loss while it fades out on images that the scores have seen."""
    x, y = setting.train[0][:images], setting.train[1][:images]
    variance = score(setting.coupling, setting.data("plain"), Variance(weighted=False))
    for name, scores in criteria(setting).items():
        removed = setting.removed(scores, 0.2)
        ranks = [
            variance[g.name]
            .argsort()
            .argsort()[torch.from_numpy(removed[setting.coupling.units[g.units]])]
            .double()
            .mean()
            / (len(g.units) - 1)
            for g in setting.coupling.groups
            if g.name.startswith("layer")
        ]
        rank = round(float(torch.stack(ranks).mean()), 3)
        line: dict[str, Any] = {"criterion": name, "variance rank": rank}
        run = Faded(setting.coupling, removed)
        for share in (0.0, 0.1, 0.25, 0.5, 1.0):
            run.share = share
            line[f"loss at {share}"] = round(float(F.cross_entropy(run((x,))[0], y)), 4)
        yield line


def criteria(setting: Setting) -> dict[str, Scores]:
    """Returns the scores of the criteria that are compared further."""
    collected = collect(context := Context(setting.coupling, setting.data("plain")), Ippro())
    return {
        **{f"ippro, {reading}": combine(context, collected, Ippro(reading=reading)) for reading in READINGS},
        "l1": score(setting.coupling, [], "l1"),
        "random": score(setting.coupling, [], "random", setting.seed),
    }


def finetuned(setting: Setting, steps: int) -> Iterator[dict[str, Any]]:
    """Yields the accuracy at ratio 0.4 before and after a few steps of SGD (0.9, cosine from 0.01)."""
    for name, scores in criteria(setting).items():
        covariance = setting.top1(scores, 0.4, "covariance")
        model = setting.pruned(scores, 0.4, None)
        before = round(cifar.accuracy(model, *setting.test), 2)
        train(model, *setting.train, steps, setting.seed)
        after = round(cifar.accuracy(model, *setting.test), 2)
        yield {"criterion": name, "before": before, "after": after, "covariance instead": covariance}


def train(model: nn.Module, images: Tensor, labels: Tensor, steps: int, seed: int) -> None:
    """Fine-tunes in place, in training mode."""
    model.train()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        rows = torch.randint(0, len(labels), (BATCH,), generator=generator)
        loss = F.cross_entropy(model(augmented(images[rows], step)), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def notes_of(part: str, steps: int, truth: Iterable[str]) -> list[str]:
    """Returns what the columns mean."""
    if part == "finetune":
        return [
            f"Ratio 0.4; after: {steps} steps of SGD, batch {BATCH}, on augmented images of the first train shard.",
            f"covariance instead: recovery with {COVARIANCE} images and no fine-tuning.",
        ]
    if part == "why":
        return [
            "Ratio 0.2. variance rank: mean rank of the removed units in their layer by the variance of what they send "
            "on; 0 is the lowest, 1 the highest, 0.5 chance.",
            "loss at t: mean loss on 256 of the scored images with a share t of every removed channel masked.",
        ]
    return [
        f"Columns 0.2 and 0.4: share of inner channels removed, no recovery; cov: covariance, {COVARIANCE} images.",
        "agreement: Spearman of the scores of two disjoint sets of images, mean over blocks. loss rise, output "
        "moved: Spearman with the rise of the loss and with the KL divergence from the dense output when a unit is "
        f"masked alone (128 images, mean over {' and '.join(truth)}).",
    ]


def main() -> None:
    """Prints and records the table."""
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--images", type=int, default=640, help="train images a scoring pass sees")
    made.add_argument("--test", type=int, default=2000, help="test images")
    made.add_argument("--part", choices=("cells", "why", "finetune"), default="cells")
    made.add_argument("--steps", type=int, default=150, help="of fine-tuning")
    options = begin(made)
    test = cifar.test_set(100 if options.quick else options.test)
    train_images = cifar.train_set(128 if options.quick else None)
    depth = resnet_cifar.depth_of(options)
    model = resnet_cifar.resnet(depth)
    count, steps = (64, 2) if options.quick else (options.images, options.steps)
    coupling = couple(capture(model, (train_images[0][:8],)))
    setting = Setting(coupling, train_images, test, count, TRUTH[depth], options.seed)
    lines = {"cells": cells(setting, options.quick), "why": why(setting), "finetune": finetuned(setting, steps)}
    rows: list[dict[str, Any]] = []
    if options.part != "why":
        column = "before" if options.part == "finetune" else "0.2"
        rows.append({"criterion": "dense", column: round(cifar.accuracy(model, *test), 2)})
    for line in lines[options.part]:
        rows.append(line)
        print(line, flush=True)
    notes = [f"{len(test[1])} test images; a scoring pass sees {count} train images."]
    notes += notes_of(options.part, steps, setting.truth)
    base = "ippro" if options.part == "cells" else f"ippro_{options.part}"
    title = "IPPRO on CIFAR-10 ResNet-56, top-1 in percent"
    print(record(name_of(base, options), rows, title=title, seed=options.seed, notes=notes))


if __name__ == "__main__":
    guarded(main)

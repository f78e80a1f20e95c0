"""The demo: a small residual network on real digits, trained, compiled, fine-tuned and timed.

Every step is a plain function; the data (1,797 scanned digits of 8 x 8 pixels) ship with scikit-learn.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from fxprune._base.extras import need
from fxprune.budget.budget import Budget, as_budget
from fxprune.latency import bench
from fxprune.reporting.pareto import budget_text
from fxprune.results.attached import report
from fxprune.results.record import Report
from fxprune.runtimes.setting import threads_set
from fxprune.scoring import scorer_of
from fxprune.storage import artifact, loading, manifest
from fxprune.streaming.compiling import compile as compile_model
from fxprune.training import Recipe, finetune

#: How the network is trained; fine-tuning starts lower.
RECIPE = Recipe(optimizer="sgd", lr=0.05, nesterov=True, weight_decay=5e-4, warmup=1.0, batch_size=32)

#: Samples of the calls that are timed.
SIZES = (1, 64)


@dataclass(frozen=True, slots=True, eq=False)
class Digits:
    """Images float32 ``[n, 1, 8, 8]`` around zero, labels int64 ``[n]``; three quarters are to train on."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the demo measured.

    Attributes:
        report: of the compilation.
        accuracy: top-1 on the test images, in percent: dense, pruned, and pruned after fine-tuning.
        latency_ms: batch size -> median milliseconds of (dense, pruned).
        reloaded: whether the saved model, loaded again, gives the same outputs.
        seconds: the whole demo.
    """

    report: Report
    accuracy: tuple[float, float, float]
    latency_ms: dict[int, tuple[float, ...]]
    reloaded: bool
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON data."""
        told = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return told | {"report": self.report.to_dict()}


class Block(nn.Module):
    """Two convolutions with batch norm around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[n, inputs, h, w]`` to ``[n, outputs, h / stride, w / stride]``."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DigitNet(nn.Module):
    """A residual network for 8 x 8 images: a stem, then two blocks at each of three widths."""

    def __init__(self, width: int = 24, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        sizes = ((width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2))
        self.blocks = nn.Sequential(
            *(layer for a, b, stride in sizes for layer in (Block(a, b, stride), Block(b, b, 1)))
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``[n, 1, 8, 8]`` to class scores ``[n, classes]``."""
        scores: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return scores


def load_digits(seed: int = 0) -> Digits:
    """Returns scikit-learn's digits, split the same way for the same seed.

    Raises:
        FxpruneError: scikit-learn is not installed.
    """
    raw = need("sklearn.datasets", "demo", "the demo").load_digits()
    images = torch.from_numpy(raw.images).float().div(8).sub(1).unsqueeze(1)
    labels = torch.from_numpy(raw.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    train, test = order.tensor_split([3 * len(order) // 4])
    return Digits((images[train], labels[train]), (images[test], labels[test]))


def make_model(seed: int = 0, width: int = 24) -> DigitNet:
    """Returns an untrained network, the same for the same seed; the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DigitNet(width)


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Returns top-1 on (images ``[n, 1, 8, 8]``, labels ``[n]``) in percent; the model is put into evaluation mode."""
    images, labels = data
    return 100.0 * float((model.eval()(images).argmax(1) == labels).float().mean())


def batches(data: tuple[Tensor, Tensor], size: int = 128) -> list[tuple[Tensor, Tensor]]:
    """Returns (images ``[n, 1, 8, 8]``, labels ``[n]``) of at most ``size`` samples each."""
    return list(zip(*(part.split(size) for part in data), strict=True))


@threads_set(1)  # so small a network gains nothing by more, and waits where cores are shared
def run(
    *,
    seed: int = 0,
    budget: float | Budget = 0.25,
    method: str = "variance",
    out: str | Path | None = None,
    epochs: int = 10,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Trains, compiles, fine-tunes, times, saves and loads again, all on one thread.

    Args:
        seed: of everything that is drawn.
        budget: the share of parameters to keep, in (0, 1], or a budget.
        method: the criterion's name.
        out: where to save the fine-tuned model; by default a temporary directory.
        epochs: of the first training; fine-tuning takes half of them.
        say: prints a line or a table.

    Raises:
        FxpruneError: a package is missing, or an argument is unusable: found before anything is trained.
    """
    start = time.perf_counter()
    need("accelerate", "demo", "the demo")
    asked = budget_text(as_budget(budget))
    scorer_of(method)
    if out is not None:
        manifest.check_target(out)
    digits, model = load_digits(seed), make_model(seed)
    say(f"training a residual network on {len(digits.train[1]):,} digits ...")
    train = partial(finetune, data=TensorDataset(*digits.train), recipe=RECIPE, progress=False)
    train(model, epochs=epochs, seed=seed)
    dense = accuracy(model, digits.test)
    say(f"compiling it to {asked} by {method} ...")
    pruned = compile_model(model, batches(digits.train), budget, method=method, seed=seed, progress=False)
    found = report(pruned)
    say(f"\n{found}\n")
    raw = accuracy(pruned, digits.test)
    say("fine-tuning the pruned network ...\n")
    train(pruned, teacher=model, epochs=max(1, epochs // 2), lr=0.005, warmup=0.0, seed=seed + 1)
    tuned = accuracy(pruned, digits.test)
    rows = bench([model, pruned], batch_sizes=SIZES, seconds=0.3).rows
    times = {size: tuple(row.ms for row in rows if row.batch_size == size) for size in SIZES}
    reloaded = _same_after_reload(pruned, digits.test[0], seed, out)
    outcome = Outcome(found, (dense, raw, tuned), times, reloaded, time.perf_counter() - start)
    say(_table(outcome, len(digits.test[1])))
    where, verdict = "" if out is None else f" to {out}", "equal" if reloaded else "DIFFERENT"
    say(f"\nsaved{where} and loaded again: outputs {verdict}; {outcome.seconds:.0f} s in all")
    return outcome


def _same_after_reload(pruned: nn.Module, images: Tensor, seed: int, out: str | Path | None) -> bool:
    """Saves, loads onto an untrained network, and compares the outputs bit for bit."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(out) if out is not None else Path(scratch) / "digits"
        artifact.save(pruned, directory)
        again = loading.load(directory, make_model(seed + 1)).eval()
    with torch.no_grad():
        return torch.equal(again(images), pruned(images))


def _table(outcome: Outcome, images: int) -> str:
    dense, raw, tuned = (f"{value:.2f} %" for value in outcome.accuracy)
    before, after = (f"{value:,}" for value in outcome.report.params)
    rows = [["parameters", before, after, after], [f"accuracy on {images} test images", dense, raw, tuned]]
    for size, (first, second) in outcome.latency_ms.items():
        rows.append([f"latency, batch {size}", f"{first:.2f} ms", *[f"{second:.2f} ms"] * 2])
    return tabulate(
        rows, ("", "dense", "pruned", "pruned, fine-tuned"), tablefmt="simple", colalign=("left", *["right"] * 3)
    )

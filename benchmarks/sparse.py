"""Pruning within training against one-shot pruning, on CIFAR-10 ResNet-20: equal MACs, equal steps of training.

Every row starts from the trained network and takes ``--steps`` steps of SGD. One-shot pruning comes before the first of them; the others
drive units to zero over the first ``--sparse`` of the way and train what is left for the rest. fxprune's removal is exact: top-1 before and
after it is the same. Torch-Pruning's regularizers add to gradients, and its pruner removes what is left of the units: top-1 before the rest
of the training says what that costs. The inner channels of the blocks may go. Needs the shared data folder.
``python benchmarks/sparse.py [--quick] [--steps N] [--macs SHARE]``
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from common import cifar, resnet_cifar
from common.audit import macs
from common.bisection import STEPS, within_macs
from common.cli import begin, guarded, name_of, needs, parser
from common.free import FREE
from common.results import record
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune

INNER = ("conv1", "layer*.conv2")  # what makes a stage's stream; it stays
#: One-shot: the criterion and the recovery; the second is what `fxprune.compile` does without a word.
ONCE: tuple[tuple[str, str | None], ...] = (("magnitude", None), ("variance", "covariance"))
#: Ours: the regulariser and its strength, at a learning rate of one.
OURS: tuple[tuple[str | None, float | None], ...] = ((None, None), ("group_lasso", 5e-3), ("growing", 1.0))
#: Torch-Pruning's: the pruner, and its own arguments as its CIFAR script has them.
PEERS = (("GroupNormPruner", {"reg": 5e-4}), ("GrowingRegPruner", {"reg": 5e-4, "delta_reg": 1e-4}))


@dataclass(frozen=True)
class Setting:
    """What all rows share; the same batches in the same order come to each."""

    options: argparse.Namespace
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @property
    def sparse(self) -> int:
        """Steps of the first part."""
        return int(self.options.steps * self.options.sparse)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields training batches without end."""
        torch.manual_seed(self.options.seed)
        loader = cifar.augmented(*self.train, size=self.options.batch)
        return itertools.chain.from_iterable(itertools.repeat(loader))

    def accuracy(self, model: nn.Module) -> float:
        """Returns the top-1 on the test images in percent."""
        return round(cifar.accuracy(model, *self.test), 2)


class Training:
    """SGD with one cosine over all steps, whatever the model is in the meantime."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.done, self.batches = setting, 0, setting.batches()

    def run(
        self,
        model: nn.Module,
        steps: int,
        before: Callable[[], object] = lambda: None,
        after: Callable[[float], object] = lambda lr: None,
    ) -> None:
        """Takes steps in place; ``before`` is called ahead of the optimiser's, ``after`` with the share of the highest rate behind it."""
        options = self.setting.options
        optimizer = torch.optim.SGD(model.parameters(), options.lr, momentum=0.9, weight_decay=5e-4)
        cosine = torch.cos(torch.linspace(0, torch.pi, options.steps)) / 2 + 0.5
        model.train()
        for x, y in itertools.islice(self.batches, steps):
            rate = max(float(cosine[self.done]), 0.01) * options.lr
            for group in optimizer.param_groups:
                group["lr"] = rate
            F.cross_entropy(model(x), y).backward()
            before()
            optimizer.step()
            optimizer.zero_grad()
            after(rate)
            self.done += 1


def one_shot(setting: Setting, dense: nn.Module, method: str, recover: str | None) -> tuple[nn.Module, float, float]:
    """Returns the network pruned first and trained then, with its top-1 before the training, twice."""
    calibration = cifar.batches(setting.train[0][:256], setting.train[1][:256], 128)
    budget = fxprune.Budget(macs=setting.options.macs)
    pruned = fxprune.compile(
        dense, calibration, budget, method=method, recover=recover, ignore=INNER, progress=False, **FREE
    )
    before = setting.accuracy(pruned)
    Training(setting).run(pruned, setting.options.steps)
    return pruned, before, before


def ours(
    setting: Setting, dense: nn.Module, sparsity: str | None, strength: float | None
) -> tuple[nn.Module, float, float]:
    """Returns the network pruned on a schedule, with its top-1 just before the removal and just after."""
    model, training = copy.deepcopy(dense), Training(setting)
    calibration = cifar.batches(setting.train[0][:256], setting.train[1][:256], 128)
    schedule = fxprune.Schedule(
        model,
        calibration,
        fxprune.Budget(macs=setting.options.macs),
        steps=setting.sparse,
        sparsity=sparsity,
        strength=strength,
        ignore=INNER,
    )
    training.run(model, setting.sparse, after=schedule.step)
    pruned = schedule.finish()
    before, after = setting.accuracy(model), setting.accuracy(pruned)
    training.run(pruned, setting.options.steps - setting.sparse)
    return pruned, before, after


def peer(setting: Setting, dense: nn.Module, kind: str, arguments: dict[str, float]) -> tuple[nn.Module, float, float]:
    """Returns the network regularised and pruned by Torch-Pruning, with its top-1 just before the removal and just after."""
    import torch_pruning as tp

    model, training, x = copy.deepcopy(dense), Training(setting), setting.train[0][:2]

    def pruner(net: nn.Module, ratio: float) -> Any:
        inner = {block.conv1 for block in net.modules() if isinstance(block, resnet_cifar.BasicBlock)}
        others = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and m not in inner]
        importance = tp.importance.GroupMagnitudeImportance(normalizer="mean")
        given = {"importance": importance, "global_pruning": True, "pruning_ratio": ratio, "ignored_layers": others}
        return getattr(tp.pruner, kind)(net, x, **given, **arguments)

    def pruned_at(ratio: float) -> nn.Module:
        trial = copy.deepcopy(model)
        trial.zero_grad()
        pruner(trial, ratio).step()
        return trial

    regularizer = pruner(model, 0.5)

    def before_step() -> None:
        if hasattr(regularizer, "update_reg"):
            regularizer.update_reg()
        regularizer.regularize(model)

    training.run(model, setting.sparse, before=before_step)
    pruned = within_macs(pruned_at, model.eval(), x[:1], setting.options.macs, STEPS)
    before, after = setting.accuracy(model), setting.accuracy(pruned)
    training.run(pruned, setting.options.steps - setting.sparse)
    return pruned, before, after


def row(
    setting: Setting, dense: nn.Module, name: str, make: Callable[[], tuple[nn.Module, float, float]]
) -> dict[str, Any]:
    """Returns one row of the table."""
    start = time.perf_counter()
    pruned, before, after = make()
    x = setting.test[0][:1]
    found = {
        "way": name,
        "MACs kept": round(macs(pruned.eval(), x) / macs(dense.eval(), x), 4),
        "top1 ahead of removal": before,
        "top1 behind it": after,
        "top1": setting.accuracy(pruned),
        "s": round(time.perf_counter() - start, 1),
    }
    print(found, flush=True)
    return found


def main() -> None:
    made = parser(__doc__.partition("\n")[0])
    made.add_argument("--steps", type=int, default=500, help="of training, in each row")
    made.add_argument("--sparse", type=float, default=0.6, help="the share of them in which units go to zero")
    made.add_argument("--batch", type=int, default=64)
    made.add_argument("--lr", type=float, default=0.02)
    made.add_argument("--macs", type=float, default=0.4, help="the share that is kept")
    options = begin(made)
    needs("torch_pruning")
    if options.quick:
        options.steps, options.batch = 6, 16
    train = cifar.train_set(256 if options.quick else None)
    setting = Setting(options, train, cifar.test_set(200 if options.quick else 10_000))
    dense = resnet_cifar.resnet(20)
    rows: list[dict[str, Any]] = [{"way": "dense", "MACs kept": 1.0, "top1": setting.accuracy(dense)}]
    for method, recover in ONCE:
        name = f"one-shot, {method}" + (f", {recover}" if recover else "")
        rows.append(row(setting, dense, name, lambda: one_shot(setting, dense, method, recover)))  # noqa: B023
    for sparsity, strength in OURS:
        name = f"Schedule, {sparsity or 'no regulariser'}"
        rows.append(row(setting, dense, name, lambda: ours(setting, dense, sparsity, strength)))  # noqa: B023
    for kind, arguments in PEERS:
        rows.append(row(setting, dense, f"Torch-Pruning, {kind}", lambda: peer(setting, dense, kind, arguments)))  # noqa: B023
    columns = {key: None for one in rows[1:] for key in one}
    text = record(
        name_of("sparse", options),
        [columns | one for one in rows],
        title="Pruning within training against one-shot pruning: ResNet-20 on CIFAR-10 at equal MACs and steps",
        seed=options.seed,
        notes=[
            f"{options.steps} steps of batches of {options.batch}, SGD, one cosine from {options.lr}; {setting.sparse} of them to zero; "
            f"{len(train[1]):,} training and {len(setting.test[1]):,} test images.",
            "Schedules and Torch-Pruning choose by magnitude; the inner channels of the blocks go. No strength was tuned: ours are powers of "
            "ten times one or five, Torch-Pruning's those of its CIFAR script, which regularises for many epochs. One seed.",
        ],
    )
    print(text)


if __name__ == "__main__":
    guarded(main)

"""What comes after pruning, on CIFAR-10: fine-tuning a ResNet, and SPvR's training from scratch of a VGG16-BN.

``--part finetune``: a pretrained ResNet is pruned to ``--macs`` with ``--methods`` and fine-tuned with the dense network as teacher.
``--part scratch``: a VGG16-BN of ``--width`` is trained, pruned by SPvR without ``--shares`` of its parameters, drawn anew and
trained the same epochs. The defaults are short schedules for a CPU; the papers' own, on a GPU:

    python benchmarks/training.py --part scratch --width 1 --epochs 200 --lr 0.1 --shares 0.7 0.8 0.9 0.95 0.98 --device cuda
    python benchmarks/training.py --part finetune --depth 56 --macs 0.507 0.282 --methods variance ippro --recipe ippro
        --epochs 100 --lr 0.01 --device cuda

Every run writes a checkpoint an epoch under ``--cache``: the same command goes on where it was stopped. ``--save`` keeps the small
weights. Needs the shared data folder.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import cifar, resnet_cifar
from common.audit import params
from common.cli import begin, guarded, name_of, parser
from common.free import FREE
from common.results import record
from common.vgg import Vgg, load_half, save_half
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fxprune
from fxprune.training import History

SHARDS = 3
LARGEST = 16_000_000  # bytes of a file that --save writes
# Table 1, full width, 200 epochs: share removed -> top-1
SPVR = {0.0: 94.25, 0.7: 94.21, 0.8: 94.33, 0.9: 94.43, 0.95: 93.64, 0.98: 92.60}
IPPRO = {(56, 0.507): 94.06, (56, 0.282): 92.47}  # (depth, MACs kept), section 4; dense 93.53


@dataclass(frozen=True)
class Setting:
    """What all runs share."""

    options: argparse.Namespace
    train: DataLoader[Any]
    images: Tensor
    labels: Tensor

    def accuracy(self, model: nn.Module) -> float:
        """Returns the top-1 on the test images in percent."""
        return round(cifar.accuracy(model, self.images, self.labels), 2)

    def arguments(self, name: str) -> dict[str, Any]:
        """Returns what every call of `fxprune.finetune` and `fxprune.retrain` gets; ``name`` tells the checkpoints apart."""
        o = self.options
        where = f"{name}-{o.images}x{o.epochs}-{o.lr}-{o.warmup}-{o.seed}"
        return {
            "recipe": o.recipe,
            "epochs": o.epochs,
            "lr": o.lr,
            "warmup": o.warmup,
            "seed": o.seed,
            "progress": False,
            "checkpoint_dir": o.cache / where,
            "mixed_precision": o.precision,
        }

    def place(self, model: nn.Module) -> nn.Module:
        """Puts a model on the device, channels last, which is the faster order on CPUs too."""
        return model.to(self.options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def keep(self, model: nn.Module, name: str) -> None:
        """Writes the weights under ``--save`` if they are small."""
        if self.options.save is None:
            return
        if 2 * params(model) > LARGEST:
            print(f"{name}: not saved, {params(model)} parameters are too many", flush=True)
            return
        save_half(model, self.options.save / f"{name}.safetensors")


def train_set(count: int) -> tuple[Tensor, Tensor]:
    """Returns the first ``count`` of the 50,000 train images and their labels."""
    images, labels = [], []
    for shard in range(SHARDS):
        if count > 0:
            x, y = cifar.train_set(count, shard)
            images, labels, count = [*images, x], [*labels, y], count - len(y)
    return torch.cat(images), torch.cat(labels)


def seconds(history: History) -> float:
    """Returns the mean seconds of an epoch."""
    return round(sum(epoch.seconds for epoch in history.epochs) / len(history.epochs), 1)


def finetune(setting: Setting) -> list[dict[str, Any]]:
    """Returns a row for the dense ResNet and for each method and share of MACs."""
    options = setting.options
    dense = setting.place(resnet_cifar.resnet(options.depth))
    name = f"ResNet-{options.depth}"
    top1 = setting.accuracy(dense)
    rows: list[dict[str, Any]] = [
        {
            "network": name,
            "method": "dense",
            "MACs kept": 1.0,
            "params": params(dense),
            "before": None,
            "top1": top1,
            "to dense": 0.0,
            "published": None,
            "s an epoch": None,
        }
    ]
    calibration = cifar.batches(*cifar.train_set(512 if options.quick else 2048), 256)
    for share in options.macs:
        for method in options.methods:
            pruned = fxprune.compile(
                dense,
                calibration,
                fxprune.Budget(macs=share),
                method=method,
                recover=None if options.recover == "none" else options.recover,
                seed=options.seed,
                progress=False,
                **FREE,
            )
            setting.place(pruned)
            before = setting.accuracy(pruned)
            print(f"{name} {method} at {share}: {before} before", flush=True)
            label = f"resnet{options.depth}-{method}-{share}"
            history = fxprune.finetune(pruned, setting.train, teacher=dense, **setting.arguments(label))
            print(history, flush=True)
            after, macs = setting.accuracy(pruned), fxprune.report(pruned).macs
            rows.append(
                {
                    "network": name,
                    "method": method,
                    "MACs kept": round(macs[1] / macs[0], 4),
                    "params": params(pruned),
                    "before": before,
                    "top1": after,
                    "to dense": round(after - top1, 2),
                    "published": IPPRO.get((options.depth, share)),
                    "s an epoch": seconds(history),
                }
            )
            print(rows[-1], flush=True)
            setting.keep(pruned, label)
    return rows


def trained(setting: Setting, name: str) -> tuple[nn.Module, float | None]:
    """Returns the dense VGG16-BN, trained or read from ``--weights``, and the seconds of an epoch."""
    options = setting.options
    model = setting.place(Vgg(16, 10, options.width))
    if options.weights is not None and options.weights.exists():
        load_half(model, options.weights)
        return model.eval(), None
    history = fxprune.retrain(model, setting.train, **setting.arguments(name))
    print(history, flush=True)
    if options.weights is not None:
        save_half(model, options.weights)
    setting.keep(model, name)
    return model.eval(), seconds(history)


def scratch(setting: Setting) -> list[dict[str, Any]]:
    """Returns a row for the dense VGG16-BN and for each share of the parameters removed, trained from scratch."""
    options = setting.options
    stem = f"vgg16-w{options.width:g}"
    dense, spent = trained(setting, f"{stem}-dense")
    top1 = setting.accuracy(dense)
    rows: list[dict[str, Any]] = [
        {
            "removed %": 0,
            "params": params(dense),
            "convs": 13,
            "MACs %": 100.0,
            "top1": top1,
            "to dense": 0.0,
            "published": SPVR[0.0],
            "published to dense": 0.0,
            "s an epoch": spent,
        }
    ]
    print(rows[-1], flush=True)
    data = [cifar.train_set(options.samples)[0]]
    for share in options.shares:
        pruned = fxprune.compile(
            dense,
            data,
            1 - share,
            method="spvr",
            min_keep=0,
            recover="reinit",
            seed=options.seed,
            progress=False,
            cache_dir=options.cache / "scores",
            **FREE,
        )
        setting.place(pruned)
        report = fxprune.report(pruned)
        history = fxprune.retrain(pruned, setting.train, **setting.arguments(f"{stem}-spvr-{share}"))
        print(history, flush=True)
        after, published = setting.accuracy(pruned), SPVR.get(share)
        convs = [row.after for row in report.groups if row.after]
        rows.append(
            {
                "removed %": 100 * share,
                "params": params(pruned),
                "convs": len(convs),
                "MACs %": round(100 * report.macs[1] / report.macs[0], 2),
                "top1": after,
                "to dense": round(after - top1, 2),
                "published": published,
                "published to dense": published and round(published - SPVR[0.0], 2),
                "s an epoch": seconds(history),
            }
        )
        print(rows[-1], convs, flush=True)
        setting.keep(pruned, f"{stem}-spvr-{share}")
    return rows


PARTS = {"finetune": finetune, "scratch": scratch}
DEFAULTS: dict[str, dict[str, Any]] = {  # what suits a CPU, where the command line does not say otherwise
    "finetune": {"images": 50_000, "epochs": 3, "lr": 0.02, "recipe": "ippro", "warmup": 0.1},
    "scratch": {"images": 20_000, "epochs": 5, "lr": 0.02, "recipe": "spvr", "warmup": 0.5},
}
TITLES = {
    "finetune": "A pruned ResNet on CIFAR-10 before and after fine-tuning, top-1 in percent",
    "scratch": "SPvR's way to the end: VGG16-BN on CIFAR-10, pruned and trained from scratch, top-1 in percent",
}


def arguments() -> argparse.Namespace:
    """Returns the command line with the part's defaults in it; quick runs are tiny."""
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--part", choices=list(PARTS), default="finetune")
    made.add_argument("--device", default="cpu")
    made.add_argument("--precision", choices=("no", "bf16"), default="no")
    made.add_argument("--images", type=int, help="train images")
    made.add_argument("--epochs", type=int)
    made.add_argument("--lr", type=float)
    made.add_argument("--warmup", type=float, help="epochs in which the rate rises")
    made.add_argument("--recipe", help="a name of fxprune.training.RECIPES")
    made.add_argument("--test", type=int, default=10_000, help="test images")
    made.add_argument("--depth", type=int, default=20, help="finetune: of the ResNet")
    made.add_argument("--macs", nargs="+", type=float, default=[0.5], help="finetune: shares to keep")
    made.add_argument("--methods", nargs="+", default=["variance"], help="finetune: criteria")
    made.add_argument("--recover", default="sequential", help="finetune: recovery, or none")
    made.add_argument("--width", type=float, default=0.25, help="scratch: of the VGG16-BN, 1 is the paper's")
    made.add_argument("--shares", nargs="+", type=float, default=[0.7, 0.9], help="scratch: parameters removed")
    made.add_argument("--samples", type=int, default=128, help="scratch: images that SPvR's scores are summed over")
    made.add_argument("--weights", type=Path, help="scratch: the dense network's, read if there, else written")
    made.add_argument("--save", type=Path, help="folder for the trained weights, float16 safetensors")
    made.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "fxprune-training")
    made.add_argument("--name", help="of the record; by default training_PART")
    options = begin(made)
    small = {"images": 256, "epochs": 1, "warmup": 0.0} if options.quick else {}
    for key, value in {**DEFAULTS[options.part], **small}.items():
        if getattr(options, key) is None:
            setattr(options, key, value)
    if options.quick:
        options.test, options.width, options.samples = 250, min(options.width, 0.125), 16
    return options


def main() -> None:
    """Prints and records the table of one part."""
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        if options.quick:  # which shall train, not find what the last quick run left
            options.cache = Path(folder)
        tabulated(options)


def tabulated(options: argparse.Namespace) -> None:
    """Prints and records the table of one part."""
    images, labels = cifar.test_set(options.test)
    train = cifar.augmented(*train_set(options.images))
    images, labels = images.to(options.device), labels.to(options.device)
    rows = PARTS[options.part](Setting(options, train, images, labels))
    notes = [
        f"{options.images} train images, random crop (4) and flip, {options.epochs} epochs, recipe {options.recipe!r} with lr "
        f"{options.lr} and {options.warmup} epochs of warm-up, batch 128; {len(labels)} test images; device {options.device}, "
        f"{options.precision} mixed precision."
    ]
    if options.part == "finetune":
        notes.append(
            f"Pruned to a share of the MACs, recover={options.recover!r} from 2,048 train images; the dense network teaches. "
            "Before: pruned and recovered, no step of training. Published: IPPRO, arXiv 2507.14171, from a dense 93.53."
        )
    else:
        notes.append(
            f"Width {options.width:g}; dense and pruned are trained the same epochs. SPvR: sets of 2, scores over "
            f"{options.samples} train images (the paper: 500). Published: SPvR's Table 1 at width 1, 200 epochs on 50,000 images; "
            "not comparable in level with a shorter schedule or a smaller width."
        )
    title = TITLES[options.part]
    name = name_of(options.name or f"training_{options.part}", options)
    print(record(name, rows, title=title, seed=options.seed, notes=notes))


if __name__ == "__main__":
    guarded(main)

"""Recipes: what a training run does with its data, as plain values, with their sources."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "constant"]
Distill = Literal["auto", "kl", "mse"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides how a network is trained; frozen, changed with `dataclasses.replace`.

    Attributes:
        epochs: passes through the data.
        lr: the highest learning rate.
        optimizer: ``"sgd"`` or ``"adamw"``.
        momentum: of SGD.
        nesterov: Nesterov's form of momentum.
        weight_decay: L2 in SGD, decoupled in AdamW.
        decay_all: whether it also acts on biases and norm scales, i.e. on parameters of fewer than two dimensions.
        schedule: ``"cosine"`` or ``"constant"``.
        warmup: epochs in which the rate first rises linearly; a fraction will do.
        final_lr: where the cosine ends.
        label_smoothing: of class targets, in [0, 1).
        distill_weight: the share a of distillation in the loss if there is a teacher, in [0, 1].
        temperature: T of distillation.
        distill: ``"kl"`` for class scores, ``"mse"`` for other outputs, ``"auto"``: floating targets mean ``"mse"``.
        clip_norm: the gradient's greatest norm; None for no limit.
        batch_size: samples a step and process where the data are a `Dataset`; else the data have batches of their own.
        source: where the values come from, and which are our choice.
    """

    epochs: int = 10
    lr: float = 1e-3
    optimizer: Optimizer = "adamw"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.01
    decay_all: bool = False
    schedule: Schedule = "cosine"
    warmup: float = 0.0
    final_lr: float = 0.0
    label_smoothing: float = 0.0
    distill_weight: float = 0.5
    temperature: float = 2.0
    distill: Distill = "auto"
    clip_norm: float | None = None
    batch_size: int = 64
    source: str = ""

    def __post_init__(self) -> None:
        for name, known in {"optimizer": Optimizer, "schedule": Schedule, "distill": Distill}.items():
            if (value := getattr(self, name)) not in get_args(known):
                raise ValueError(f"{name}: expected {' or '.join(map(repr, get_args(known)))}, got {value!r}")
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
        for name in ("lr", "temperature", *(() if self.clip_norm is None else ("clip_norm",))):
            self._check_number(name, math.inf, positive=True)
        ranges = {"momentum": 1.0, "weight_decay": math.inf, "warmup": float(self.epochs), "final_lr": self.lr}
        for name, high in {**ranges, "label_smoothing": math.nextafter(1.0, 0.0), "distill_weight": 1.0}.items():
            self._check_number(name, high)
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: expected a momentum above 0, got 0")

    def rate(self, step: int, steps: int) -> float:
        """Returns the learning rate of one step.

        A linear rise over the first ``W`` steps (Goyal et al. 2017, arXiv 1706.02677, section 2.2), then half a cosine
        without restarts (Loshchilov and Hutter 2017, arXiv 1608.03983, Eq. 5).

        Args:
            step: counted from 0 over the whole run.
            steps: in one epoch.
        """
        rise, total = round(self.warmup * steps), self.epochs * steps
        if step < rise:
            return self.lr * (step + 1) / rise
        if self.schedule == "constant":
            return self.lr
        done = (step - rise) / max(1, total - rise)
        return self.final_lr + (self.lr - self.final_lr) * (1.0 + math.cos(math.pi * done)) / 2.0

    def _check_number(self, name: str, high: float, *, positive: bool = False) -> None:
        value = getattr(self, name)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not 0.0 <= value <= high or (positive and not value):
            most = "" if high == math.inf else f" and at most {high:g}"
            raise ValueError(f"{name}: expected a number {'above' if positive else 'at least'} 0{most}, got {value!r}")


_SGD = Recipe(optimizer="sgd", momentum=0.9, weight_decay=5e-4, decay_all=True, batch_size=128)

#: Named recipes.
RECIPES: dict[str, Recipe] = {
    "default": Recipe(
        warmup=0.5, clip_norm=1.0, source="ours: for a network that has lost accuracy and has its weights"
    ),
    "spvr": replace(
        _SGD,
        epochs=200,
        lr=0.1,
        source="SPvR, UAI 2025 (PMLR 286): SGD with momentum 0.9, cosine, 200 epochs, batch 128, from scratch "
        "(VGG16 on CIFAR-10); ours: lr, weight_decay",
    ),
    "ippro": replace(
        _SGD,
        epochs=100,
        lr=0.01,
        nesterov=True,
        source="IPPRO, arXiv 2507.14171: fine-tuning after pruning; ours: SGD and every value",
    ),
    "vbp": Recipe(
        epochs=10,
        lr=1.5e-5,
        weight_decay=0.01,
        batch_size=32,
        source="VBP, ICCV 2025, arXiv 2507.12988: 10 epochs, distillation from the dense model, AdamW 1.5e-5, cosine, "
        "weight decay 0.01, batch 32; ours: distill_weight, temperature, no decay of biases and norms",
    ),
}


def recipe_of(recipe: str | Recipe, **changes: Any) -> Recipe:
    """Returns a recipe by its name, or the given one, with some of its values changed.

    Raises:
        ValueError: an unknown name, or a value out of range.
        TypeError: an unknown field, or something that is no recipe.
    """
    if isinstance(recipe, str) and recipe not in RECIPES:
        raise ValueError(f"recipe: expected one of {', '.join(map(repr, RECIPES))}, got {recipe!r}")
    found = RECIPES[recipe] if isinstance(recipe, str) else recipe
    if not isinstance(found, Recipe):
        raise TypeError(f"recipe: expected a name or a fxprune.Recipe, got {type(found).__name__}")
    known = [entry.name for entry in fields(Recipe)]
    if unknown := sorted(set(changes) - set(known)):
        raise TypeError(f"unknown argument {unknown[0]!r}: a recipe has {', '.join(known)}")
    return replace(found, **changes)

"""A training run put together: arguments checked, the data fed, the optimiser made."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune._base.errors import TrainingError
from fxprune._base.extras import need
from fxprune._base.files import unwritable
from fxprune._base.given import seed_of
from fxprune._base.modes import untouched
from fxprune._base.ranks import shared, world
from fxprune.data.checks import check_weights, device_of
from fxprune.results.attached import attach, report_if_any
from fxprune.results.fidelity import Fidelity
from fxprune.training.feed import feed_of
from fxprune.training.history import History
from fxprune.training.loop import Run, train
from fxprune.training.objective import Objective
from fxprune.training.recipe import Recipe, recipe_of
from fxprune.training.together import check_trainable, whole_rounds
from fxprune.training.tune import TrainingOptions


def start(
    pruned: nn.Module, data: Any, options: TrainingOptions, fresh: Callable[[nn.Module], object] | None = None
) -> History:
    """Trains a network in place and returns what happened.

    Args:
        pruned: the network.
        data: as `fxprune.finetune` takes them.
        options: how; with a `Recipe`, not its name.
        fresh: initialises the weights first, in place; None keeps them.

    Raises:
        FxpruneError, ValueError, TypeError: as `fxprune.finetune`.
    """
    accelerator = need("accelerate", "train", "training").Accelerator()
    _check_launch(accelerator)
    with shared():
        return _start(pruned, data, options, fresh, accelerator)


def _start(
    pruned: nn.Module,
    data: Any,
    options: TrainingOptions,
    fresh: Callable[[nn.Module], object] | None,
    accelerator: Any,
) -> History:
    while isinstance(pruned, nn.parallel.DistributedDataParallel):
        pruned = pruned.module
    _check(pruned, options)
    recipe = recipe_of(options.recipe)
    objective = Objective(recipe, options.loss)
    if options.validation is not None:
        need("torchmetrics", "train", "training")
    bf16 = _is_bf16(options.mixed_precision, accelerator)
    device = accelerator.device if accelerator.num_processes > 1 else device_of(pruned)
    feed = partial(feed_of, device=device, batch_size=recipe.batch_size, forward_args=options.forward_args)
    batches = replace(feed(data, shuffle=True), whole=whole_rounds(pruned))
    if batches.steps == 0 and batches.length:
        got = f"{batches.length} for {world()}: make them smaller, or train in fewer processes"
        raise TrainingError(
            f"data: expected a batch for each process, which synchronised batch norm waits for, got {got}"
        )
    exam = None if options.validation is None else feed(options.validation, shuffle=False)
    identity = {
        "kind": "finetune" if fresh is None else "retrain",
        "recipe": asdict(recipe),
        "seed": int(options.seed),
        "steps": batches.steps,
        "processes": world(),
        "bf16": bf16,
        "teacher": options.teacher is not None,
    }
    teacher, optimizer = options.teacher, _optimizer(pruned.to(device), recipe)
    with ExitStack() as stack:
        if teacher is not None:
            teacher = teacher if device_of(teacher) == device else copy.deepcopy(teacher).to(device)
            stack.enter_context(untouched(teacher, training=False))
        run = Run(pruned, teacher, objective, batches, exam, optimizer, bf16, options, identity)
        before = _versions(pruned)
        try:
            return train(run, fresh)
        finally:
            if _versions(pruned) != before:
                _note(pruned, str(identity["kind"]))


def _check_launch(accelerator: Any) -> None:
    """Makes sure that accelerate is set to nothing that is not done here.

    Raises:
        ValueError: it is; says what to do.
    """
    if (kind := str(accelerator.distributed_type.value)) != "NO" and not kind.startswith("MULTI_"):
        raise ValueError(
            f"accelerate: expected processes that have the whole model each, got {kind}: launch without it"
        )
    if (steps := accelerator.gradient_accumulation_steps) != 1:
        raise ValueError(
            f"accelerate: expected gradient_accumulation_steps of 1, got {steps}: pass larger batches, or launch more processes"
        )


def _versions(model: nn.Module) -> list[int]:
    """Returns how often each parameter was written to."""
    return [parameter._version for parameter in model.parameters()]


def _note(pruned: nn.Module, how: str) -> None:
    """Lets the report of a model, if it has one, say that its certificate is about other weights."""
    line = f"the weights have been trained since ({how}): the certificate is about those before"
    if (found := report_if_any(pruned)) is not None and line not in found.notes:
        stale = None if found.fidelity is None else Fidelity(why="not measured: the weights have been trained since")
        attach(pruned, replace(found, notes=(*found.notes, line), fidelity=stale))


def _check(pruned: nn.Module, options: TrainingOptions) -> None:
    teacher = options.teacher
    models = {"pruned": pruned} if teacher is None else {"pruned": pruned, "teacher": teacher}
    for name, model in models.items():
        if not isinstance(model, nn.Module):
            raise TypeError(f"{name}: expected a torch.nn.Module, got {type(model).__name__}")
    if seed_of(options.seed) < 0:
        raise ValueError(f"seed: expected a whole number from 0, got {options.seed}")
    if options.metrics is not None and options.validation is None:
        raise ValueError("metrics: expected validation data to measure them on, got none: pass validation=")
    if not any(parameter.requires_grad for parameter in pruned.parameters()):
        raise TrainingError("pruned: expected parameters with requires_grad, got none: there is nothing to train")
    check_trainable(pruned)
    place = options.checkpoint_dir
    if place is not None and (why := unwritable(Path(place).resolve())):
        raise TrainingError(
            f"checkpoint_dir={os.fspath(place)!r}: expected a directory that files can be put into: {why}"
        )
    for model in models.values():
        check_weights(model)
    if teacher is not None and _storages(pruned) & _storages(teacher):
        raise ValueError("teacher: it shares tensors with the model that is trained: pass a copy")


def _storages(model: nn.Module) -> set[int]:
    tensors = (*model.parameters(), *model.buffers())
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}


def _is_bf16(wanted: str | None, accelerator: Any) -> bool:
    found = str(accelerator.mixed_precision) if wanted is None else wanted
    if found not in ("no", "bf16"):
        raise ValueError(f"mixed_precision: expected 'no' or 'bf16', got {found!r}")
    return found == "bf16"


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [p for p in parameters if recipe.decay_all or p.dim() > 1]
    spared = [p for p in parameters if not recipe.decay_all and p.dim() <= 1]
    both = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    groups = [group for group in both if group["params"]]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)

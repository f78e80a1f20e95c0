"""`finetune` and `retrain`: arguments checked and put together into a run."""

from __future__ import annotations

import copy
import dataclasses
import operator
from collections.abc import Iterator
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune._base.errors import TrainingError
from fxprune._base.extras import need
from fxprune._base.modes import untouched
from fxprune.data.batch import ForwardArgs
from fxprune.data.checks import check_weights, device_of
from fxprune.recovery.reinit import Reset, check_resettable
from fxprune.scoring.loss import Loss
from fxprune.training.feed import Feed, feed_of
from fxprune.training.history import History
from fxprune.training.loop import Run, train
from fxprune.training.metrics import Examination
from fxprune.training.objective import Objective
from fxprune.training.recipe import Recipe, recipe_of


def finetune(
    pruned: nn.Module,
    data: Any,
    *,
    teacher: nn.Module | None = None,
    recipe: str | Recipe = "default",
    epochs: int | None = None,
    lr: float | None = None,
    validation: Any = None,
    loss: Loss | None = None,
    metrics: Any = None,
    checkpoint_dir: str | PathLike[str] | None = None,
    resume: bool = True,
    forward_args: ForwardArgs | None = None,
    seed: int = 0,
    progress: bool = True,
    mixed_precision: str | None = None,
    **overrides: Any,
) -> History:
    """Trains ``pruned`` in place from the weights it has; on the CPU the same call gives the same weights, bit for bit.

    A run that was interrupted and is called again with the same ``checkpoint_dir`` and arguments goes on after its last
    whole epoch and ends with the weights of a run that was never interrupted. Whatever stops a run, an interrupt too,
    ``pruned`` has the weights of the last finished step and the training flags that it came with.

    One process trains where the model lies. Under ``accelerate launch`` each process takes its share of the batches, on
    its own device; all use the same seeds, dropout's masks too, and each validates on all of the validation data.

    Args:
        pruned: the network; modules in training mode during epochs (by its own ``train()``), flags put back after.
        data: batches, gone through in every epoch: a ``DataLoader``, a list, or a ``Dataset``, which is shuffled. A
            batch is a tensor, ``(inputs, targets)`` or a dict with ``labels``. Shuffling and augmentation are the same in a
            resumed run as far as they draw from global generators or the loader's own.
        teacher: the dense network, for distillation; never changed, in evaluation mode while it is used. With it targets
            may be missing: then distillation is the whole loss.
        recipe: a name of ``fxprune.training.RECIPES`` or a `Recipe`.
        epochs: in place of the recipe's.
        lr: in place of the recipe's.
        validation: data to measure on before the first epoch and after each; in the forms of ``data``.
        loss: ``loss(outputs, targets)``, a mean over the batch; by default cross-entropy for class numbers and mean
            squared error for values.
        metrics: torchmetrics' metrics of (logits, targets): one, a list or a dict; by default the accuracy for classes.
        checkpoint_dir: where ``checkpoint.safetensors`` is written after each epoch.
        resume: go on from the checkpoint there; otherwise it is overwritten after the first epoch.
        forward_args: as for `fxprune.compile`.
        seed: of everything that is drawn; global random states are put back.
        progress: show a bar on a terminal.
        mixed_precision: ``"no"`` or ``"bf16"``; by default what accelerate is configured to.
        **overrides: other fields of the recipe, e.g. ``label_smoothing=0.1``.

    Returns:
        Losses, metrics, rates and times of all epochs; ``print`` shows a table.

    Raises:
        CalibrationError: data, weights or targets are unusable, or there are neither targets nor a teacher.
        TrainingError: the loss is not finite; says at which step, and the weights of the step before stay.
        ImportError: accelerate or torchmetrics is missing.
        PlanError: the checkpoint is damaged or of another run.
        TypeError, ValueError: another argument is malformed.
    """
    return _start(
        pruned,
        data,
        recipe=recipe_of(recipe, **_given(epochs=epochs, lr=lr), **overrides),
        teacher=teacher,
        validation=validation,
        loss=loss,
        metrics=metrics,
        checkpoint_dir=checkpoint_dir,
        resume=resume,
        forward_args=forward_args,
        seed=seed,
        progress=progress,
        mixed_precision=mixed_precision,
    )


def retrain(
    pruned: nn.Module,
    data: Any,
    *,
    recipe: str | Recipe = "spvr",
    reset: Reset | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    teacher: nn.Module | None = None,
    validation: Any = None,
    loss: Loss | None = None,
    metrics: Any = None,
    checkpoint_dir: str | PathLike[str] | None = None,
    resume: bool = True,
    forward_args: ForwardArgs | None = None,
    seed: int = 0,
    progress: bool = True,
    mixed_precision: str | None = None,
    **overrides: Any,
) -> History:
    """Trains ``pruned`` in place from a fresh initialisation, as SPvR does; the rest is as with `finetune`.

    Args:
        pruned: the network; its weights are lost.
        data: as for `finetune`, and so are the arguments that are not named here.
        recipe: a name of ``fxprune.training.RECIPES`` or a `Recipe`.
        reset: initialises the model in place; by default every module's own ``reset_parameters()``, in order.
        epochs: in place of the recipe's.
        lr: in place of the recipe's.
        teacher: for distillation.
        validation: data to measure on.
        loss: in place of the default loss.
        metrics: torchmetrics' metrics.
        checkpoint_dir: for checkpoints.
        resume: go on from the checkpoint there.
        forward_args: as for `fxprune.compile`.
        seed: of the initialisation and everything else that is drawn.
        progress: show a bar on a terminal.
        mixed_precision: ``"no"`` or ``"bf16"``.
        **overrides: other fields of the recipe.

    Raises:
        TrainingError: a parameter has no module that could initialise it: pass ``reset``; and as `finetune`.
    """
    chosen = recipe_of(recipe, **_given(epochs=epochs, lr=lr), **overrides)
    if reset is None:
        check_resettable(pruned)
    return _start(
        pruned,
        data,
        recipe=chosen,
        teacher=teacher,
        validation=validation,
        loss=loss,
        metrics=metrics,
        checkpoint_dir=checkpoint_dir,
        resume=resume,
        forward_args=forward_args,
        seed=seed,
        progress=progress,
        mixed_precision=mixed_precision,
        fresh=True,
        reset=reset,
    )


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _start(
    pruned: nn.Module,
    data: Any,
    *,
    recipe: Recipe,
    teacher: nn.Module | None,
    validation: Any,
    loss: Loss | None,
    metrics: Any,
    checkpoint_dir: str | PathLike[str] | None,
    resume: bool,
    forward_args: ForwardArgs | None,
    seed: int,
    progress: bool,
    mixed_precision: str | None,
    fresh: bool = False,
    reset: Reset | None = None,
) -> History:
    _check(pruned, teacher, validation, metrics, seed)
    objective = Objective(recipe, loss)
    accelerator = need("accelerate", "train", "training").Accelerator()
    if validation is not None:
        need("torchmetrics", "train", "training")
    bf16 = _precision(mixed_precision, accelerator) == "bf16"
    device = device_of(pruned) if accelerator.num_processes == 1 else accelerator.device

    def feed(source: Any, **share: Any) -> Feed:
        return feed_of(source, device=device, batch_size=recipe.batch_size, forward_args=forward_args, **share)

    turns = {"process": accelerator.process_index, "processes": accelerator.num_processes}
    batches = feed(data, shuffle=True, **turns)
    exam = None
    if validation is not None:
        plain = dataclasses.replace(recipe, label_smoothing=0.0, distill_weight=0.0)
        exam = Examination(feed(validation, shuffle=False), Objective(plain, loss), metrics)
    network = pruned
    if accelerator.num_processes > 1:
        network = accelerator.prepare_model(pruned.to(device))
    identity = {
        "kind": "retrain" if fresh else "finetune",
        "recipe": dataclasses.asdict(recipe),
        "seed": int(seed),
        "steps": batches.steps,
        "processes": accelerator.num_processes,
        "bf16": bf16,
        "teacher": teacher is not None,
    }
    with ExitStack() as stack:
        if teacher is not None:
            teacher = teacher if device_of(teacher) == device else copy.deepcopy(teacher).to(device)
            stack.enter_context(untouched(teacher, training=False))
        run = Run(
            pruned,
            network,
            teacher,
            recipe,
            objective,
            batches,
            exam,
            _optimizer(pruned, recipe),
            accelerator,
            bf16,
            operator.index(seed),
            None if checkpoint_dir is None else Path(checkpoint_dir),
            identity,
            progress,
        )
        try:
            return train(run, resume=resume, fresh=fresh, reset=reset)
        finally:
            if network is not pruned:
                accelerator.unwrap_model(network, keep_fp32_wrapper=False)


def _check(pruned: Any, teacher: Any, validation: Any, metrics: Any, seed: Any) -> None:
    for name, model in (("pruned", pruned), ("teacher", teacher)):
        if not isinstance(model, nn.Module) and not (name == "teacher" and model is None):
            raise TypeError(f"{name}: expected a torch.nn.Module, got {type(model).__name__}")
    if operator.index(seed) < 0:
        raise ValueError(f"seed: expected a whole number from 0, got {seed}")
    if metrics is not None and validation is None:
        raise ValueError("metrics: expected validation data to measure them on, got none: pass validation=")
    if not any(parameter.requires_grad for parameter in pruned.parameters()):
        raise TrainingError("pruned: expected parameters with requires_grad, got none: there is nothing to train")
    check_weights(pruned)
    if teacher is not None:
        check_weights(teacher)
        own = set(_storages(pruned))
        if any(place in own for place in _storages(teacher)):
            raise ValueError("teacher: it shares tensors with the model that is trained: pass a copy")


def _storages(model: nn.Module) -> Iterator[int]:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.numel():
            yield tensor.untyped_storage().data_ptr()


def _precision(wanted: str | None, accelerator: Any) -> str:
    found = str(accelerator.mixed_precision) if wanted is None else wanted
    if found not in ("no", "bf16"):
        raise ValueError(f"mixed_precision: expected 'no' or 'bf16', got {found!r}")
    return found


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [p for p in parameters if recipe.decay_all or p.dim() > 1]
    spared = [p for p in parameters if not recipe.decay_all and p.dim() <= 1]
    groups = [
        {"params": members, "weight_decay": decay}
        for members, decay in ((decayed, recipe.weight_decay), (spared, 0.0))
        if members
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)

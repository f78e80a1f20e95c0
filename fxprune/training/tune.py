"""`finetune` and `retrain`, and their options; torch is imported when they are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any

from fxprune.compiler.options import spelled_out
from fxprune.training.history import History
from fxprune.training.recipe import Recipe, recipe_of

if TYPE_CHECKING:
    from torch import nn

    from fxprune.data.batch import ForwardArgs
    from fxprune.recovery.reinit import Reset
    from fxprune.scoring.loss import Loss


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """How a network is trained; every field is a keyword argument of `fxprune.finetune` and `fxprune.retrain`.

    Attributes:
        teacher: the dense network, for distillation; never changed, in evaluation mode while it is used. With it targets
            may be missing: then distillation is the whole loss.
        recipe: a name of ``fxprune.training.RECIPES`` or a `Recipe`.
        epochs: in place of the recipe's.
        lr: the highest learning rate, in place of the recipe's.
        validation: data to measure on before the first epoch and after each; in the forms of ``data``.
        loss: ``loss(outputs, targets)``, a mean over the batch; by default cross-entropy for class numbers, of the next token
            where they are the tokens of a causal model, and mean squared error for values.
        metrics: torchmetrics' metrics of (logits, targets): one, a list or a dict; by default the accuracy for classes. Targets are
            those of the loss: of a causal model the next token, and -100 where there is none.
        checkpoint_dir: where ``checkpoint.safetensors`` is written after each epoch.
        resume: go on from the checkpoint there; otherwise it is overwritten after the first epoch.
        forward_args: as for `fxprune.compile`.
        seed: of everything that is drawn; global random states are put back.
        progress: show a bar on a terminal; the log ``"fxprune"`` has a line for each epoch.
        mixed_precision: ``"no"`` or ``"bf16"``; by default what accelerate is configured to.
    """

    teacher: nn.Module | None = None
    recipe: str | Recipe = "default"
    epochs: int | None = None
    lr: float | None = None
    validation: Any = None
    loss: Loss | None = None
    metrics: Any = None
    checkpoint_dir: str | PathLike[str] | None = None
    resume: bool = True
    forward_args: ForwardArgs | None = None
    seed: int = 0
    progress: bool = True
    mixed_precision: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> TrainingOptions:
        """Returns the options among a call's arguments, with the recipe that these make.

        Raises:
            ValueError, TypeError: an unknown recipe or field of one, or a value out of range.
        """
        changes = {name: given[name] for name in ("epochs", "lr") if given[name] is not None}
        recipe = recipe_of(given["recipe"], **changes, **given["overrides"])
        return cls(**{entry.name: given[entry.name] for entry in fields(cls)} | {"recipe": recipe})


def finetune(  # noqa: D417  # the options are described as `TrainingOptions` has them
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

    One process trains where the model lies. In a process group, and under ``accelerate launch`` or ``torchrun``, all processes
    train together, each on its own device and given all of the data: a step takes as many batches as there are processes, fewer
    at last, and is that of one process which has them in one batch. All end with the same model; see ``docs/training.md``.

    Args:
        pruned: the network; modules in training mode during epochs (by its own ``train()``), flags put back after.
        data: batches, gone through in every epoch: a ``DataLoader``, a list, or a ``Dataset``, which is shuffled. A
            batch is a tensor, ``(inputs, targets)`` or a dict with ``labels``. Shuffling and augmentation are the same in a
            resumed run as far as they draw from global generators or the loader's own.
        (options)
        **overrides: other fields of the recipe, e.g. ``label_smoothing=0.1``.

    Returns:
        Losses, metrics, rates and times of all epochs; ``print`` shows a table.

    Raises:
        CalibrationError: data, weights or targets are unusable, or there are neither targets nor a teacher.
        FxpruneError: processes hold different models, data or options, or one of them failed; says which.
        TrainingError: the loss is not finite; says at which step, and the weights of the step before stay; or parameters are sharded.
        ImportError: accelerate or torchmetrics is missing.
        PlanError: the checkpoint is damaged or of another run.
        TypeError, ValueError: another argument is malformed.
    """
    from fxprune.training.setup import start

    return start(pruned, data, TrainingOptions.of(locals()))


def retrain(  # noqa: D417  # likewise
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
        reset: initialises the model in place; by default every module's own ``reset_parameters()``, in order.
        (options)
        **overrides: other fields of the recipe.

    Raises:
        TrainingError: a parameter has no module that could initialise it: pass ``reset``; and as `finetune`.
    """
    from fxprune.recovery.reinit import check_resettable, reset_weights
    from fxprune.training.setup import start

    options = TrainingOptions.of(locals())
    if reset is None:
        check_resettable(pruned)
    return start(pruned, data, options, partial(reset_weights, seed=seed, reset=reset))


for _call in (finetune, retrain):
    spelled_out(_call, TrainingOptions)

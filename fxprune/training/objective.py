"""What is minimised, and what is measured: the loss with its label smoothing and distillation, and metrics on other data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fxprune._base.errors import CalibrationError
from fxprune._base.extras import need
from fxprune.data.batch import Batch
from fxprune.scoring.causal import next_tokens
from fxprune.scoring.loss import IGNORED, Loss, classes_dim, default_loss, logits_of, one_number
from fxprune.training.feed import Feed
from fxprune.training.recipe import Recipe

#: Runs a model on a batch and returns its outputs in float32.
Forward = Callable[[Batch], Any]


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss of a batch: ``(1 - a) * task + a * distillation``; without a teacher the task's, without targets a = 1.

    Attributes:
        recipe: label smoothing, a, T and the kind of distillation.
        loss: the task's loss; None for `default_loss`.
        causal: targets are the tokens of the inputs, and scores for the next one (see `fxprune.scoring.causal`).
    """

    recipe: Recipe
    loss: Loss | None = None
    causal: bool = False

    def __post_init__(self) -> None:
        if self.loss is not None and self.recipe.label_smoothing:
            got = f"{self.recipe.label_smoothing:g}: smooth in it"
            raise ValueError(f"label_smoothing: expected 0 with a loss of your own, got {got}")

    def __call__(self, outputs: Any, targets: Any, taught: Any = None) -> Tensor:
        """Returns the mean loss of a batch.

        Args:
            outputs: the network's.
            targets: as `default_loss` or the given loss takes them; None if there are none.
            taught: the teacher's outputs; None without a teacher.

        Raises:
            CalibrationError: neither targets nor a teacher, or they do not fit the outputs.
            ValueError: the given loss is not one number.
        """
        targets = self.placed(targets)
        share = 0.0 if taught is None else self.recipe.distill_weight if targets is not None else 1.0
        if targets is None and taught is None:
            raise CalibrationError(
                "training data: a batch has no targets and there is no teacher: pass (inputs, targets), a dict with "
                "'labels', forward_args that returns (args, kwargs, targets), or teacher="
            )
        if share == 0.0:
            return self.task(outputs, targets)
        soft = self.distillation(outputs, taught, targets)
        return soft if share == 1.0 else (1.0 - share) * self.task(outputs, targets) + share * soft

    def weight(self, outputs: Any, batch: Batch) -> float:
        """Returns over how much the loss of a batch is the mean: targets that count, values, or samples for a loss of the user's."""
        if self.loss is not None:
            return float(batch.size)
        targets = logits_of(outputs) if batch.targets is None else self.placed(batch.targets)
        return float(targets.numel() if targets.is_floating_point() else (targets.long() != IGNORED).sum())

    def placed(self, targets: Any) -> Any:
        """Returns targets, ``[batch, tokens]`` where they are tokens, each where the scores for it are; without change for a given loss."""
        return next_tokens(targets) if self.causal and self.loss is None and isinstance(targets, Tensor) else targets

    def task(self, outputs: Any, targets: Any) -> Tensor:
        """Returns the loss ``[]`` on the targets; class targets are smoothed."""
        if self.loss is not None:
            return one_number(self.loss(outputs, targets))
        rows = self.rows(outputs, targets) if self.recipe.label_smoothing else None
        if rows is None:
            return default_loss(outputs, targets, tokens=self.causal)  # which says what does not fit
        return functional.cross_entropy(*rows, label_smoothing=self.recipe.label_smoothing)

    def distillation(self, outputs: Any, taught: Any, targets: Any = None) -> Tensor:
        """Returns how far, ``[]``, the outputs ``[batch, ...]`` are from the teacher's.

        For class scores ``T^2 * KL(softmax(teacher / T) || softmax(student / T))``, the mean over samples and positions
        (Hinton et al. 2015, arXiv 1503.02531, section 2, up to the teacher's entropy); else the mean squared error.
        Positions whose target is -100 do not count.

        Raises:
            CalibrationError: the outputs are of different shapes.
        """
        student, teacher = logits_of(outputs), logits_of(taught).detach()
        if student.shape != teacher.shape:
            raise CalibrationError(
                f"distillation: expected the teacher's outputs to be {list(student.shape)}, as the network's are, got "
                f"{list(teacher.shape)}: pass the model that it was pruned from"
            )
        values = isinstance(targets, Tensor) and targets.is_floating_point()
        if self.recipe.distill == "mse" or (self.recipe.distill == "auto" and values):
            return functional.mse_loss(student, teacher.to(student.dtype))
        found, counted = classes_dim(outputs, targets, tokens=self.causal), None
        if found is not None:
            counted = targets.flatten().long() != IGNORED
        dim = (
            (1 if student.dim() >= 4 else -1) if found is None else found
        )  # of maps the second dimension, of all else the last
        rows, soft = (x.movedim(dim, -1).reshape(-1, x.shape[dim]) for x in (student, teacher))
        return _divergence(rows, soft, counted, self.recipe.temperature)

    def rows(self, outputs: Any, targets: Any) -> tuple[Tensor, Tensor] | None:
        """Returns scores ``[rows, classes]`` and class numbers ``[rows]``, read as `default_loss` reads them; None if they are none.

        Args:
            outputs: the network's.
            targets: as `placed` has them.
        """
        dim = classes_dim(outputs, targets, tokens=self.causal)
        return None if dim is None else (logits_of(outputs).movedim(dim, -1).flatten(0, -2), targets.flatten().long())


def _divergence(rows: Tensor, soft: Tensor, counted: Tensor | None, temperature: float) -> Tensor:
    """Returns the mean divergence ``[]`` of scores from others, both ``[rows, classes]``, over the rows that count."""
    found = functional.kl_div(
        functional.log_softmax(rows.float() / temperature, dim=-1),
        functional.log_softmax(soft.float() / temperature, dim=-1),
        reduction="none",
        log_target=True,
    ).sum(dim=-1)
    return temperature**2 * (found.mean() if counted is None else (found * counted).sum() / counted.sum().clamp(min=1))


@torch.no_grad()
def examine(
    feed: Feed, objective: Objective, metrics: Any, *, student: Forward, teacher: Forward, seed: int
) -> dict[str, float]:
    """Returns ``loss``, the mean over samples, and the metrics by name; the given metrics' states stay as they are.

    Args:
        feed: the validation data, all of it in each process.
        objective: without label smoothing or distillation.
        metrics: torchmetrics' metrics, one, several or a mapping of names, of targets as the loss takes them; None for the accuracy
            of class targets.
        student: the network in evaluation mode.
        teacher: whose outputs are the reference where there are no targets; None for none.
        seed: of what the data draw.

    Raises:
        CalibrationError: neither targets nor a teacher.
        ValueError: a metric is not one number.
    """
    by_default, total, samples = metrics is None, 0.0, 0
    measured: Any = None if by_default else _collection(metrics, feed.device)
    with feed.drawing(seed, 0):
        for batch in feed.batches:
            outputs, targets = student(batch), batch.targets
            taught = teacher(batch) if targets is None else None
            total, samples = total + float(objective(outputs, targets, taught)) * batch.size, samples + batch.size
            if objective.loss is not None and by_default:
                continue
            placed = objective.placed(targets)
            scored = objective.rows(outputs, placed) if by_default else (logits_of(outputs), placed)
            if scored is not None:
                measured = measured or _collection(_accuracy(scored[0].shape[1]), feed.device)
                measured.update(*scored)
    found = {} if measured is None else measured.compute()
    return {"loss": total / samples, **{name: _number(name, value) for name, value in found.items()}}


def _accuracy(classes: int) -> dict[str, Any]:
    """Returns top-1 over all samples, as a share."""
    made = need("torchmetrics.classification", "train", "training").MulticlassAccuracy
    return {"accuracy": made(max(2, classes), average="micro", ignore_index=IGNORED, validate_args=False)}


def _collection(metrics: Any, device: torch.device) -> Any:
    """Returns fresh copies of the metrics; each process sees all data, so nothing is exchanged."""
    made = need("torchmetrics", "train", "training").MetricCollection
    found = made(copy.deepcopy(metrics), compute_groups=False).to(device)
    for metric in found.values():
        metric.sync_on_compute = False
    found.reset()
    return found


def _number(name: str, value: Any) -> float:
    found = torch.as_tensor(value)
    if found.numel() != 1:
        raise ValueError(f"metric {name!r}: expected one number, got {list(found.shape)}: average it")
    return float(found)

"""The training loss: targets, label smoothing and distillation from a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional

from fxprune._base.errors import CalibrationError
from fxprune.scoring.loss import Loss, default_loss, logits_of
from fxprune.training.recipe import Recipe

#: The class number that counts for nothing, as in ``torch.nn.functional.cross_entropy``.
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss of a batch: ``(1 - a) * task + a * distillation``; without a teacher the task's, without targets a = 1.

    Attributes:
        recipe: label smoothing, a, T and the kind of distillation.
        loss: the task's loss; None for `default_loss`.
    """

    recipe: Recipe
    loss: Loss | None = None

    def __post_init__(self) -> None:
        if self.loss is not None and self.recipe.label_smoothing:
            raise ValueError(
                "label_smoothing: expected 0 with a loss of your own, got "
                f"{self.recipe.label_smoothing:g}: smooth in it"
            )

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

    def task(self, outputs: Any, targets: Any) -> Tensor:
        """Returns the loss on the targets; class targets are smoothed."""
        if self.loss is not None:
            found = self.loss(outputs, targets)
            if not isinstance(found, Tensor) or found.numel() != 1:
                got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise ValueError(f"loss: expected a tensor of one number, the mean over the batch, got {got}")
            return found.squeeze()
        if not self.recipe.label_smoothing or not is_classes(targets):
            return default_loss(outputs, targets)
        rows, classes = class_rows(logits_of(outputs), targets)
        return functional.cross_entropy(rows, classes, label_smoothing=self.recipe.label_smoothing)

    def distillation(self, outputs: Any, taught: Any, targets: Any = None) -> Tensor:
        """Returns how far the outputs are from the teacher's.

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
        return _divergence(student, teacher, targets, self.recipe.temperature)


def is_classes(targets: Any) -> bool:
    """Says whether targets are class numbers."""
    return isinstance(targets, Tensor) and not targets.is_floating_point() and not targets.is_complex()


def class_rows(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns scores ``[rows, classes]`` and class numbers ``[rows]``, read as `default_loss` reads them.

    Raises:
        CalibrationError: they do not fit each other.
    """
    if targets.shape == (logits.shape[0], *logits.shape[2:]):
        return logits.movedim(1, -1).flatten(0, -2), targets.flatten().long()
    if targets.shape == logits.shape[:-1]:
        return logits.flatten(0, -2), targets.flatten().long()
    default_loss(logits, targets)  # says what does not fit
    raise AssertionError("default_loss takes targets that class_rows does not")


def fits(logits: Tensor, targets: Tensor) -> bool:
    """Says whether class numbers have a shape that goes with the scores."""
    return targets.shape in ((logits.shape[0], *logits.shape[2:]), logits.shape[:-1])


def _divergence(student: Tensor, teacher: Tensor, targets: Any, temperature: float) -> Tensor:
    counted = None
    if is_classes(targets) and fits(student, targets):
        rows, classes = class_rows(student, targets)
        soft, _ = class_rows(teacher, targets)
        counted = classes != IGNORED
    else:  # maps have their classes in the second dimension, all else in the last
        rows, soft = (x.movedim(1, -1) if x.dim() >= 4 else x for x in (student, teacher))
        rows, soft = (x.reshape(-1, x.shape[-1]) for x in (rows, soft))
    found = functional.kl_div(
        functional.log_softmax(rows.float() / temperature, dim=-1),
        functional.log_softmax(soft.float() / temperature, dim=-1),
        reduction="none",
        log_target=True,
    ).sum(dim=-1)
    mean = found.mean() if counted is None else (found * counted).sum() / counted.sum().clamp(min=1)
    return temperature**2 * mean

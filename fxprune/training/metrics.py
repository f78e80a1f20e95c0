"""Validation: the task's loss and torchmetrics' metrics over a data set."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fxprune._base.extras import need
from fxprune.data.batch import Batch
from fxprune.scoring.loss import logits_of
from fxprune.training.feed import Feed
from fxprune.training.objective import IGNORED, Objective, class_rows, fits, is_classes

#: Runs a model on a batch and returns its outputs in float32.
Forward = Callable[[Batch], Any]


@dataclass(frozen=True, slots=True, eq=False)
class Examination:
    """How a network is validated.

    Attributes:
        feed: the validation data, all of it in each process.
        objective: without label smoothing or distillation.
        metrics: torchmetrics' metrics, one, several or a mapping of names; None for the accuracy of
            class targets.
    """

    feed: Feed
    objective: Objective
    metrics: Any = None


@torch.no_grad()
def examine(exam: Examination, student: Forward, teacher: Forward, seed: int) -> dict[str, float]:
    """Returns ``loss``, the mean over samples, and the metrics by name; the given metrics' states stay as they are.

    Args:
        exam: data and measures.
        student: the network in evaluation mode.
        teacher: whose outputs are the reference where there are no targets; None for none.
        seed: of what the data draw.

    Raises:
        CalibrationError: neither targets nor a teacher.
        ValueError: a metric is not one number.
    """
    metrics: Any = None if exam.metrics is None else _collection(exam.metrics, exam.feed.device)
    total, samples = 0.0, 0
    with exam.feed.drawing(seed, 0):
        for batch in exam.feed.batches:
            outputs, targets = student(batch), batch.targets
            total += (
                float(exam.objective(outputs, targets, None if targets is not None else teacher(batch))) * batch.size
            )
            samples += batch.size
            scored = logits_of(outputs), targets
            if exam.metrics is None:
                if exam.objective.loss is not None or not is_classes(targets) or not fits(*scored):
                    continue
                scored = class_rows(*scored)
                metrics = metrics or _collection(_accuracy(scored[0].shape[1]), exam.feed.device)
            metrics.update(*scored)
    found = {} if metrics is None else metrics.compute()
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

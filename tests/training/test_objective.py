"""Losses, against their formulas."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fxprune.training import Recipe
from fxprune.training.objective import Objective


def test_label_smoothing_is_its_formula() -> None:
    logits, classes = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 4, 2, 2, 1, 3])
    soft = torch.full((6, 5), 0.1 / 5, dtype=torch.float64)
    soft[torch.arange(6), classes] += 0.9
    expected = -(soft * torch.log(torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True))).sum(1).mean()
    objective = Objective(Recipe(label_smoothing=0.1))
    torch.testing.assert_close(objective(logits, classes), expected)
    maps = logits.reshape(2, 3, 5).movedim(-1, 1)  # [batch, classes, positions]
    torch.testing.assert_close(objective(maps, classes.reshape(2, 3)), expected)
    tokens = logits.reshape(1, 6, 5)  # [batch, positions, classes]
    torch.testing.assert_close(objective(tokens, classes.reshape(1, 6)), expected)


def test_distillation_is_its_formula() -> None:
    student, teacher = torch.randn(2, 4, 3), torch.randn(4, 3)
    student = student[0].requires_grad_()
    classes = torch.tensor([0, 2, -100, 1])

    def softmax(x: Tensor) -> Tensor:
        return torch.exp(x / 3.0) / torch.exp(x / 3.0).sum(1, keepdim=True)

    p, q = softmax(teacher), softmax(student)
    rows = (p * (p / q).log()).sum(1)
    objective = Objective(Recipe(distill_weight=0.3, temperature=3.0))
    torch.testing.assert_close(objective(student, None, teacher), 9.0 * rows.mean())
    counted = rows[classes != -100].mean()
    expected = 0.7 * F.cross_entropy(student, classes) + 0.3 * 9.0 * counted
    torch.testing.assert_close(objective(student, classes, teacher), expected)
    torch.testing.assert_close(objective(student, classes), F.cross_entropy(student, classes))
    # Hinton's own form has the same gradient: a cross-entropy with the teacher's soft targets
    (ours,) = torch.autograd.grad(objective(student, None, teacher), student)
    (his,) = torch.autograd.grad(9.0 * -(p * softmax(student).log()).sum(1).mean(), student)
    torch.testing.assert_close(ours, his)


def test_values_are_distilled_by_squared_error() -> None:
    outputs, taught, targets = torch.randn(3, 4, 2)
    objective = Objective(Recipe(distill_weight=0.25))
    expected = 0.75 * ((outputs - targets) ** 2).mean() + 0.25 * ((outputs - taught) ** 2).mean()
    torch.testing.assert_close(objective(outputs, targets, taught), expected)
    alone = Objective(Recipe(distill="mse"))(outputs, None, taught)
    torch.testing.assert_close(alone, ((outputs - taught) ** 2).mean())


def test_every_part_reads_the_classes_alike_where_there_are_as_many_as_tokens() -> None:
    """The next token's loss, its smoothing and its distillation take the classes of ``[batch, tokens, classes]`` in the last place."""
    student, teacher, tokens = torch.randn(2, 5, 5), torch.randn(2, 5, 5), torch.randint(5, (2, 5))
    rows, ahead = student[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    torch.testing.assert_close(Objective(Recipe(), causal=True)(student, tokens), F.cross_entropy(rows, ahead))
    smooth = Objective(Recipe(label_smoothing=0.1), causal=True)
    torch.testing.assert_close(smooth(student, tokens), F.cross_entropy(rows, ahead, label_smoothing=0.1))
    distilled = Objective(Recipe(distill_weight=1.0, temperature=1.0), causal=True)
    taught = teacher[:, :-1].flatten(0, 1).log_softmax(-1)
    expected = F.kl_div(rows.log_softmax(-1), taught, reduction="batchmean", log_target=True)
    torch.testing.assert_close(distilled(student, tokens, teacher), expected)

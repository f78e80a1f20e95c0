"""Gates, against masking itself; gradients of values and parameters, against autograd on the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune._base.errors import CalibrationError
from fxprune.capturing.inputs import PlainInputs
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.scoring.engine.gradients import by_unit, gradients
from fxprune.scoring.loss import default_loss
from fxprune.twin.interpreter import Run
from tests.models.smooth import NETWORKS
from tests.support.pruning import prepared
from tests.support.tensors import random


def _loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.flatten(1).sum(dim=1) * targets).mean()


def _change(coupling: Coupling, flat: tuple[Tensor, ...], unit: int, share: float) -> Tensor:
    """Returns by how much the outputs move when a unit is masked by so large a share."""

    class Damped(Run):
        def _masked(self, node, source, values):  # type: ignore[no-untyped-def]
            masked = super()._masked(node, source, values)
            return values[source] + share * (masked - values[source])

    (dense,) = Run(Selection.nothing(coupling))(flat)
    (less,) = Damped(Selection(coupling, coupling.removed_mask([unit])))(flat)
    return (less - dense).flatten(1).sum(dim=1) / share


@pytest.mark.parametrize("name", ["chain", "residual", "attention", "windows"])
def test_a_gate_is_the_derivative_of_masking(name: str) -> None:
    model, x = NETWORKS[name]()
    coupling = prepared(model, (x,))[1]
    targets = torch.linspace(-1, 1, len(x), dtype=torch.float64)
    (found,) = gradients(coupling, PlainInputs([(x,)], [targets]).labelled("test"), _loss, gates=True)
    per_unit = by_unit(coupling, found.gates, found.samples)
    assert per_unit.shape == (len(x), len(coupling.units))
    for unit in range(0, len(coupling.units), 3):
        expected = _change(coupling, (x,), unit, 1e-6) * targets
        torch.testing.assert_close(-per_unit[:, unit], expected, rtol=1e-4, atol=1e-6)


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).double()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "a tensor of one number, the mean over the batch, got NoneType"),
        (1.5, "a tensor of one number, the mean over the batch, got float"),
        (torch.ones(3, requires_grad=True), r"a tensor of one number, the mean over the batch, got \[3\]"),
        (torch.ones(()), "a number with a gradient, made of the outputs, got one without"),
    ],
)
def test_a_loss_that_cannot_be_differentiated(given: Any, message: str) -> None:
    coupling = prepared(_mlp(), (random(6, 8),))[1]
    batches = PlainInputs([(random(6, 8),)], [torch.zeros(6)]).labelled("test")
    with pytest.raises(ValueError, match=f"loss: expected {message}"):
        next(gradients(coupling, batches, lambda outputs, targets: given, gates=True))


def test_parameters_and_values() -> None:
    model, x = _mlp(), random(6, 8)
    coupling = prepared(model, (x,))[1]
    targets = torch.arange(6) % 3
    layers = [n for n in coupling.captured.module.graph.nodes if n.target is torch.ops.aten.linear.default]
    names = [name for name, _ in model.named_parameters()]
    inputs = PlainInputs([(x,)], [targets])
    (found,) = gradients(coupling, inputs.labelled("test"), default_loss, parameters=names, nodes=layers[:1])
    loss = F.cross_entropy(model(x), targets, reduction="sum")
    expected = torch.autograd.grad(loss, list(model.parameters()))
    assert found.loss == pytest.approx(float(loss.detach()))
    for name, value in zip(names, expected, strict=True):
        torch.testing.assert_close(found.parameters[name], value)
    assert all(p.grad is None for p in model.parameters())
    (alone,) = gradients(coupling, inputs.labelled("test"), default_loss, nodes=layers[:1])
    for one in (found, alone):
        value, gradient = one.values[layers[0]]
        assert value.shape == gradient.shape
        torch.testing.assert_close(gradient.sum(dim=0), found.parameters[str(layers[0].args[2].target)])


def test_targets_are_needed() -> None:
    coupling = prepared(_mlp(), (random(6, 8),))[1]
    with pytest.raises(CalibrationError, match="'taylor' needs targets"):
        next(gradients(coupling, PlainInputs([(random(6, 8),)]).labelled("taylor"), default_loss))


@pytest.mark.parametrize(("outputs", "targets"), [((4, 3), (4,)), ((4, 3, 5, 5), (4, 5, 5)), ((4, 7, 3), (4, 7))])
def test_default_loss_is_cross_entropy(outputs: tuple[int, ...], targets: tuple[int, ...]) -> None:
    logits, classes = torch.randn(outputs), torch.randint(0, 3, targets)
    last = logits if targets == (outputs[0], *outputs[2:]) else logits.movedim(-1, 1)
    torch.testing.assert_close(default_loss({"logits": logits}, classes), F.cross_entropy(last, classes))


def test_default_loss_of_values_is_the_squared_error() -> None:
    x, y = torch.randn(4, 3), torch.randn(4, 3)
    torch.testing.assert_close(default_loss((x,), y), F.mse_loss(x, y))


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        (torch.randn(4, 3), torch.zeros(5, dtype=torch.long), r"targets int64 \[5\] do not fit outputs \[4, 3\]"),
        (torch.randn(4, 3), torch.randn(4), r"targets float32 \[4\] do not fit"),
        (torch.randn(4, 3), ["a"], "expected a tensor, got list"),
        ([torch.zeros(3, dtype=torch.long)], torch.zeros(3), "no floating tensor"),
    ],
)
def test_unfit_targets_are_refused(outputs: object, targets: object, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        default_loss(outputs, targets)

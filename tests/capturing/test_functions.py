"""The model's own autograd Functions keep their backward where that is exact, and are told of elsewhere."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function

import fxprune
from fxprune.capturing.captured import capture
from fxprune.ops.layers import CustomFunction
from tests.models.fn import Fn
from tests.support.capturing import ops
from tests.support.gradients import check_gradients
from tests.support.pruning import prepared


class Sign(Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


class Reversed(Function):
    """Turns the gradient round, times a factor."""

    @staticmethod
    def forward(ctx: Any, factor: float, x: Tensor) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return None, -ctx.factor * gradient


class Clipped(Function):
    """Has a context of its own, and reads what it saved."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clamp(-1, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return torch.where(x.abs() < 2, gradient, 0.1 * gradient)


class Normed(Function):
    """Its backward mixes channels: without some of them, the others have another gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient / gradient.norm()


class Product(Function):
    """Takes two tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return x * y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return gradient, gradient


def model(function: Any) -> nn.Module:
    torch.manual_seed(0)
    layers = {"a": nn.Linear(6, 12), "b": nn.Linear(12, 10), "o": nn.Linear(10, 3)}
    return Fn(lambda m, x: m.o(torch.relu(m.b(function(m.a(x))))), **layers)


def x() -> Tensor:
    return torch.randn(5, 6, dtype=torch.float64)


EACH = {
    "straight-through": Sign.apply,
    "reversal": lambda x: Reversed.apply(0.5, x),
    "context": Clipped.apply,
    "twice": lambda x: Reversed.apply(2.0, Reversed.apply(0.5, x)),
}


@pytest.mark.parametrize("name", EACH)
def test_what_works_on_each_value_keeps_its_backward(name: str) -> None:
    coupling = prepared(model(EACH[name]), (x(),))[1]
    assert coupling.groups
    assert "function.default" in " ".join(ops(coupling.captured))
    assert coupling.captured.notes == ()
    check_gradients(coupling, (x(),))


def test_a_graph_keeps_its_function_whatever_is_captured_later() -> None:
    first = prepared(model(EACH["reversal"]), (x(),))[1]
    for _ in range(5):  # objects come and go, at the same addresses
        prepared(model(EACH["straight-through"]), (x(),))
        gc.collect()
    check_gradients(first, (x(),))
    emitted = fxprune.emit(first.captured, fxprune.rewrite(first, first.removed_mask([])))
    given = x()
    assert torch.equal(emitted(given), first.captured.model(given))


@pytest.mark.parametrize(("function", "name"), [(Normed.apply, "Normed"), (lambda x: Product.apply(x, x), "Product")])
def test_a_backward_that_is_lost_is_warned_of(function: Any, name: str) -> None:
    with pytest.warns(fxprune.GradientWarning, match=f"{name}, a torch.autograd.Function"):
        pruned = fxprune.compile(model(function).double(), [x()], 0.6, progress=False)
    assert any(name in note for note in fxprune.report(pruned).notes)


def test_classes_are_as_they_were() -> None:
    before = {cls: dict(vars(cls)) for cls in (Sign, Reversed, Clipped, torch.utils.checkpoint.CheckpointFunction)}
    capture(model(Sign.apply).double().eval(), (x(),))
    assert all(dict(vars(cls)) == attributes for cls, attributes in before.items())


def test_the_result_is_copied_with_its_function_and_a_file_does_not_name_it(tmp_path: Path) -> None:
    net = model(Sign.apply).double()
    pruned = fxprune.compile(net, [x()], 0.6, recover=None, progress=False)
    (function,) = [module for module in copy.deepcopy(pruned).modules() if isinstance(module, CustomFunction)]
    assert function.function is Sign
    fxprune.save(pruned, tmp_path / "saved")
    with pytest.raises(fxprune.PlanError, match="Sign"):
        fxprune.load(tmp_path / "saved")
    again = fxprune.load(tmp_path / "saved", net)
    assert torch.equal(again(given := x()), pruned(given))

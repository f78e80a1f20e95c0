"""A size is free only where the graph gives the model's numbers at another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.capturing.captured import Captured
from fxprune.compiler.freeing import freely_captured
from tests.support.capturing import run


class Scaled(nn.Module):
    """A layer, times what Python makes of the sizes."""

    def __init__(self, factor: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.factor = nn.Linear(6, 4), factor

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.factor(x)


def captured(factor: Callable[[Tensor], Any], *shape: int, **options: Any) -> tuple[nn.Module, Captured]:
    model = Scaled(factor).eval()
    return model, freely_captured(model, (torch.randn(*shape),), {}, **options)


@pytest.mark.parametrize(
    ("factor", "length"),
    [
        (lambda x: len(str(x.shape[1])), 7),
        (lambda x: len(str(tuple(x.shape[1:]))), 20),
        (lambda x: {"8": 2}.get(f"{x.shape[1]}", 3), 8),
    ],
)
def test_a_size_that_becomes_a_text_is_fixed_and_the_batch_stays_free(
    factor: Callable[[Tensor], Any], length: int
) -> None:
    model, found = captured(factor, 2, length, 6)
    for batch in (2, 5):
        x = torch.randn(batch, length, 6)
        torch.testing.assert_close(run(found, x), model(x))
    with pytest.raises(fxprune.ShapeError, match=f"expected {length} in dimension 1, got 4"):
        run(found, torch.randn(2, 4, 6))


def test_a_batch_that_becomes_a_text_is_fixed() -> None:
    model, found = captured(lambda x: int(str(x.shape[0])), 2, 7, 6)
    x = torch.randn(2, 7, 6)
    torch.testing.assert_close(run(found, x), model(x))
    with pytest.raises(fxprune.ShapeError, match="expected 2 in dimension 0, got 3"):
        run(found, torch.randn(3, 7, 6))


def test_a_size_that_the_user_frees_and_the_model_makes_a_text_of_is_refused() -> None:
    shapes = {"x": {1: torch.export.Dim("length")}}
    with pytest.raises(
        fxprune.CaptureError, match=r"at x\.shape\[1\] = 16 the model computes something else.*leave that size out"
    ):
        captured(lambda x: len(str(x.shape[1])), 2, 7, 6, dynamic_shapes=shapes)


@pytest.mark.parametrize("factor", [lambda x: torch.rand(1), lambda x: 1 + 0 * len(f"{x.shape}")])
def test_chance_and_messages_fix_nothing(factor: Callable[[Tensor], Any]) -> None:
    _, found = captured(factor, 2, 7, 6)
    assert run(found, torch.randn(3, 12, 6)).shape == (3, 12, 4)


def test_the_model_and_the_random_state_stay_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout()).train()
    before, x = {name: value.clone() for name, value in model.state_dict().items()}, torch.randn(5, 6)
    state = torch.get_rng_state()
    freely_captured(model, (x,), {})
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

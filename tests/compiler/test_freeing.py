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


class Exporting(nn.Module):
    """Gives something else while it is exported."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x).relu())
        return y if torch.compiler.is_exporting() else y.softmax(-1)


class Streaming(Exporting):
    """Keeps what it computes from call to call: the first one is the graph's."""

    last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x).relu()) + (0 if self.last is None else self.last)
        self.last = y.detach()
        return y


class Noisy(Exporting):
    def forward(self, x: Tensor) -> Tensor:
        return self.b((self.a(x) + torch.randn_like(x[:, :1])).relu())


@pytest.mark.parametrize("dynamic_shapes", [None, ({},)], ids=["of any size", "of one size"])
def test_a_graph_that_is_not_the_model_is_warned_of(dynamic_shapes: Any) -> None:
    options: dict[str, Any] = {"recover": None, "progress": False, "dynamic_shapes": dynamic_shapes}
    with pytest.warns(fxprune.CaptureWarning, match="gives something else than the graph"):
        pruned = fxprune.compile(Exporting(), [torch.randn(8, 6)], 0.6, **options)
    assert any("gives something else than the graph" in note for note in fxprune.report(pruned).notes)


@pytest.mark.parametrize("kind", [Streaming, Noisy])
def test_models_that_differ_from_call_to_call_are_not(kind: type[nn.Module]) -> None:
    found = freely_captured(kind().eval(), (torch.randn(8, 6),), {})
    assert found.warned == ()

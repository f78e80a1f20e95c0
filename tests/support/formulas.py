"""Two small networks on which a criterion is compared with its formula, written out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fxprune.capturing.inputs import PlainInputs
from fxprune.coupling.coupling import Coupling
from fxprune.scoring.engine.shares import layers_that, remaining_share
from fxprune.scoring.scorer import Context
from tests.models.fn import Fn
from tests.models.stepwise import Conv, Mlp
from tests.support.pruning import prepared
from tests.support.tensors import random


def built(name: str) -> tuple[Coupling, Any, Tensor, Tensor]:
    """Returns coupling, model, inputs and targets; unit 2 of the first layer is dead."""
    model, x = {"conv": (Conv(), random(5, 3, 6, 6)), "mlp": (Mlp(), random(9, 7))}[name]
    coupling = prepared(model, (x,))[1]
    with torch.no_grad():
        model.a.weight[2], model.a.bias[2] = 0, -1
    return coupling, model, x, torch.arange(len(x)) % 4


def inputs(x: Tensor, y: Tensor) -> PlainInputs:
    return PlainInputs([(x[:2],), (x[2:],)], [y[:2], y[2:]])


def ranked(coupling: Coupling, raw: dict[str, Tensor], *, read: bool) -> dict[str, Tensor]:
    """Returns what the scorer must give, from plain scores of groups with one maker and one reader."""
    shares = {name: s / s.sum() for name, s in raw.items()}
    return remaining_share(shares, layers_that(Context(coupling, PlainInputs(())), read=read))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.detach().double(), rtol=1e-7, atol=1e-9)


def order(scores: Tensor) -> list[int]:
    return scores.argsort(stable=True).tolist()


def two_layers(seed: int = 0) -> tuple[Coupling, nn.Module]:
    torch.manual_seed(seed)
    model = Fn(lambda m, x: m.b(m.a(x).relu()), a=nn.Linear(5, 8), b=nn.Linear(8, 3))
    return prepared(model, (torch.randn(6, 5, dtype=torch.float64),), seed)[1], model


def copies(batches: int = 3) -> tuple[Coupling, nn.Module, list[tuple[Tensor, ...]]]:
    """A conv net whose second half of inner channels copies the first."""
    torch.manual_seed(0)
    model = Fn(
        lambda m, x: m.head(m.b(m.a(x).relu()).relu().mean((2, 3))),
        a=nn.Conv2d(3, 6, 3, padding=1),
        b=nn.Conv2d(6, 4, 3, padding=1),
        head=nn.Linear(4, 3),
    )
    data = [(torch.randn(8, 3, 6, 6, dtype=torch.float64),) for _ in range(batches)]
    coupling = prepared(model, data[0])[1]
    with torch.no_grad():
        for tensor in (model.a.weight, model.a.bias):
            tensor[3:] = tensor[:3]
    return coupling, model, data

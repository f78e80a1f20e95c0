"""A network with channels that are zero for every input, and what is left of it without them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import fxprune
from tests.support.tensors import random


class Network(nn.Module):
    """``a`` makes 32 channels, of which half are to go; a norm looks at all of them, and ``b`` reads what it gives."""

    def __init__(self, norm: nn.Module, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.act, self.norm = nn.Linear(8, 32), activation or nn.Identity(), norm
        self.b, self.o = nn.Linear(32, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.b(self.norm(self.act(self.a(x)))).relu())


def network(norm: nn.Module, activation: nn.Module | None = None) -> Network:
    torch.manual_seed(0)
    return Network(norm, activation).double().eval()


def kill(model: Network, which: Tensor) -> Network:
    """Makes channels zero for every input."""
    with torch.no_grad():
        model.a.weight[which] = 0
        model.a.bias[which] = 0
    return model


def halved(
    model: nn.Module, recover: str | None, inputs: Tensor | None = None, ratios: Mapping[str, float] | None = None
) -> nn.Module:
    """Returns the network without half of ``a``'s channels, the smallest, or by other ratios."""
    ratios = {"a": 0.5, **(ratios or {}), "default": 0.0}
    given = [random(64, 8) if inputs is None else inputs]
    options: Any = {"method": "l2", "recover": recover, "dynamic_shapes": {}, "progress": False}
    return fxprune.compile(model, given, ratios=ratios, **options)


def kept(pruned: nn.Module) -> Tensor:
    """Returns which of ``a``'s channels stay, of a result that was verified."""
    plan = fxprune.report(pruned).plan
    assert plan is not None and fxprune.report(pruned).verified
    return torch.tensor(plan.keep["a.weight"][0])

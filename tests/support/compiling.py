"""Small models compiled in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fxprune
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.rewriting.emission import emit
from fxprune.rewriting.pruned import PrunedModule
from fxprune.rewriting.slicing import slice_graph
from tests.models.fn import Fn
from tests.models.small import Convolutions
from tests.support.pruning import prepared, removal
from tests.support.weights import randomise


def mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


def around(function: Any) -> nn.Module:
    torch.manual_seed(0)
    return Fn(lambda m, x: m.b(function(m.a(x))), a=nn.Linear(8, 32), b=nn.Linear(32, 4)).eval()


def compile_small(model: nn.Module, data: Any = None, budget: Any = 0.5, **options: Any) -> Any:
    data = [torch.randn(64, 8, generator=torch.Generator().manual_seed(0))] if data is None else data
    return fxprune.compile(model, data, budget, progress=False, **options)


def couple_fn(function: Callable[..., Any], *args: Tensor, **parts: Any) -> Coupling:
    torch.manual_seed(0)
    return prepared(Fn(function, **parts), args)[1]


def pruned_at(coupling: Coupling, share: float = 0.5) -> PrunedModule:
    removed = removal(coupling, 0, share)
    assert removed.any()
    return emit(coupling.captured, slice_graph(Selection(coupling, removed)))


def compile_verified(model: nn.Module, data: list[Any], budget: float = 0.6, **options: Any) -> PrunedModule:
    pruned = fxprune.compile(model, data, budget, recover=None, progress=False, **options)
    assert fxprune.report(pruned).verified is True
    return pruned


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return randomise(Convolutions().eval(), 0, (torch.randn(4, 3, 12, 12),))

"""Plans with their emitted modules, and what is done to them, for all that tests a certificate."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxprune._base.names import fetch
from fxprune.algebra.channels import Mask
from fxprune.capturing.captured import capture
from fxprune.compiler.by_hand import verify
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.interpreter import couple
from fxprune.coupling.selection import Selection
from fxprune.results.certificate import Certificate
from fxprune.rewriting.emission import emit
from fxprune.rewriting.slicing import slice_graph
from tests.models import small
from tests.models.fn import Fn
from tests.support.pruning import prepared, removal
from tests.support.tensors import random
from tests.support.weights import randomise


@dataclass(frozen=True, eq=False)
class Compiled:
    """A plan with its emitted module and a batch that it was not captured with."""

    coupling: Coupling
    removed: Mask
    module: nn.Module
    args: tuple[Tensor, ...]

    def certificate(self, module: nn.Module | None = None, **options: Any) -> Certificate:
        return verify(self.coupling, self.removed, module or self.module, (self.args, {}), **options)

    def original(self, name: str) -> Tensor:
        tensor: Tensor = fetch(self.coupling.captured.module, name).detach()
        return tensor


def compiled(coupling: Coupling, args: tuple[Tensor, ...], removed: Mask | None = None) -> Compiled:
    removed = removal(coupling, 0, 0.4) if removed is None else removed
    assert removed.any()
    return Compiled(coupling, removed, emit(coupling.captured, slice_graph(Selection(coupling, removed))), args)


@functools.cache
def shown(name: str) -> Coupling:
    """Returns the coupling of a network with weights under which no channel is hidden by a ReLU."""
    torch.manual_seed(0)
    build, example = small.NETWORKS[name]
    batch = example(batch=12)
    model = randomise(build().double().eval(), 0, batch)
    if name == "residual":
        model.gate[1].bias.detach().add_(3)
    return couple(capture(model, batch))


@functools.cache
def network(name: str) -> Compiled:
    return compiled(shown(name), small.NETWORKS[name][1](batch=12, seed=1))


@contextmanager
def changed(tensor: Tensor, value: Tensor) -> Iterator[None]:
    kept = tensor.detach().clone()
    with torch.no_grad():
        tensor.copy_(value)
        yield
        tensor.copy_(kept)


def floats(module: nn.Module) -> dict[str, Tensor]:
    named = (*module.named_parameters(), *module.named_buffers())
    return {name: tensor for name, tensor in named if tensor.is_floating_point()}


WIDTH = 12


def layers(function: Callable[..., Any], *, units: int | None = None, **parts: Any) -> Compiled:
    """Returns ``function(m, m.a(x))`` compiled: ``m.a`` makes 12 channels, ``m.b`` reads them; some of them removed.

    Args:
        function: of the module and the channels.
        units: coordinates of ``m.a`` that each removed unit has.
        parts: further parts of the module.
    """
    torch.manual_seed(0)
    model = Fn(lambda m, x: function(m, m.a(x)), **{"a": nn.Linear(5, WIDTH), "b": nn.Linear(WIDTH, 4), **parts})
    coupling = prepared(model, (random(6, 5),))[1]
    on = coupling.parameter("a.weight")[0]
    removed = np.zeros(len(coupling.channels), bool)
    for group in coupling.groups:
        for unit in group.units[1:-2]:
            one = coupling.removed_mask([unit])
            if units is None or coupling.slicer(one).count(on) == WIDTH - units:
                removed |= one
    return compiled(coupling, (random(6, 5, seed=1),), removed)


class Other(nn.Module):
    """Changes what a module returns."""

    def __init__(self, inner: nn.Module, change: Callable[[Any], Any]) -> None:
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, *args: Any) -> Any:
        return self.change(self.inner(*args))

"""A layer that loses channels, and one that may take over what they did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.algebra.channels import Mask
from fxprune.capturing.captured import capture
from fxprune.compiler.by_hand import recover, verify
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.interpreter import couple
from fxprune.coupling.selection import Selection
from fxprune.rewriting.emission import emit
from fxprune.rewriting.slicing import slice_graph
from tests.models.fn import Fn

TINY = 1e-10
METHODS = ("mean_shift", "covariance", "sequential", "reconstruct")


@dataclass(frozen=True, eq=False)
class Pair:
    """A producer ``a`` and a consumer ``b`` around it, with what was decided to go."""

    model: nn.Module
    coupling: Coupling
    removed: Mask
    batches: list[tuple[Tensor, ...]]

    def error(self, method: str | None, **options: Any) -> float:
        """Returns how far the recovered network is from the dense one, relative to its spread."""
        recovery = recover(self.coupling, self.removed, self.batches, method, **options)
        pruned = emit(self.coupling.captured, slice_graph(Selection(self.coupling, self.removed, recovery.tensors)))
        dense, got = (torch.cat([m(*batch) for batch in self.batches]).detach() for m in (self.model, pruned))
        assert (
            verify(self.coupling, self.removed, pruned, (self.batches[0], {}), tensors=recovery.tensors).verified
            is not False
        )
        return float((dense - got).norm() / (dense - dense.mean(0)).norm())


def pair(
    build: Callable[[], nn.Module],
    shape: tuple[int, ...],
    prepare: Callable[[nn.Module], None],
    gone: list[int],
    count: int = 3,
) -> Pair:
    """Captures a model in float64; ``gone`` are coordinates of the first layer's output."""
    torch.manual_seed(0)
    model = build().double().eval()
    with torch.no_grad():
        prepare(model)
    batches = [(torch.randn(shape, dtype=torch.float64),) for _ in range(count)]
    coupling = couple(capture(model, batches[0]))
    (first,) = [a for a in coupling.axes if a.tensor == "a.weight" and a.dim == 0]
    removed = np.zeros(len(coupling.channels), bool)
    removed[first.labels[gone].ravel()] = True
    removed[0] = False
    return Pair(model, coupling, removed, batches)


def chain(a: nn.Module, b: nn.Module, norm: nn.Module | None = None) -> nn.Module:
    """``b(relu(a(x)))``, with a norm behind ``b`` if one is given."""
    tail = nn.Identity() if norm is None else norm
    return Fn(lambda m, x: m.norm(m.b(m.a(x).relu())), a=a, b=b, norm=tail)


def twice(model: nn.Module) -> None:
    """Makes the second half of the first layer's channels copies of the first half."""
    for tensor in (model.a.weight, model.a.bias):
        half = len(tensor) // 2
        tensor[half:] = tensor[:half]


def constant(model: nn.Module) -> None:
    """Makes the second half of the first layer's channels constants."""
    half = len(model.a.weight) // 2
    model.a.weight[half:] = 0
    model.a.bias[half:] = torch.rand(half, dtype=torch.float64) + 0.5


def statistics(model: nn.Module) -> None:
    """Gives the norm statistics of its own."""
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: chain(nn.Linear(5, 8), nn.Linear(8, 3)), (32, 5)),
    "tokens": (lambda: chain(nn.Linear(5, 8), nn.Linear(8, 3)), (8, 4, 5)),
    "1x1": (lambda: chain(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)), (4, 3, 5, 5)),
    "3x3": (lambda: chain(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3, padding=1)), (8, 3, 6, 6)),
    "strided, dilated": (
        lambda: chain(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3, stride=2, dilation=2, padding=(1, 2))),
        (9, 3, 9, 8),
    ),
    "1d, same": (lambda: chain(nn.Conv1d(3, 8, 1), nn.Conv1d(8, 4, 3, padding="same")), (8, 3, 9)),
    "3d": (lambda: chain(nn.Conv3d(3, 8, 1), nn.Conv3d(8, 2, 2)), (8, 3, 4, 4, 4)),
}

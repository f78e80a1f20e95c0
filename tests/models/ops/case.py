"""One op in a tiny model, and what it must make of the channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Case:
    """One op in a tiny model: how to build it, its input shapes, and the groups that it must have.

    Attributes:
        name: the test's id.
        build: makes the model.
        shapes: of the inputs, the batch first.
        groups: each as "units kind: axes", an axis as "tensor[dim]", "x n" if a unit has n coordinates there.
        statistic: whether the op takes a statistic over channels.
        inexact: names a case whose outputs say nothing about numbers (a constant or integer result).
    """

    name: str
    build: Callable[[], nn.Module]
    shapes: Sequence[tuple[int, ...]]
    groups: Sequence[str]
    statistic: bool = False
    inexact: bool = False
    inputs: Callable[[], tuple[Tensor, ...]] | None = field(default=None)

    def args(self, seed: int = 0) -> tuple[Tensor, ...]:
        """Returns random inputs."""
        torch.manual_seed(seed)
        return self.inputs() if self.inputs else tuple(torch.randn(s, dtype=torch.float64) for s in self.shapes)

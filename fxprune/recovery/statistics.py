"""Statistics of what layers read in the dense model, in as many passes as memory asks for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, fx

from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.recovery.consumers import Consumer
from fxprune.recovery.moments import Moments
from fxprune.twin.interpreter import Run

#: The moments of blocks of columns.
Blocks: TypeAlias = "list[tuple[slice, Moments]]"


def _blocks(consumer: Consumer, covariance: bool, memory_limit: int) -> list[slice]:
    """Cuts the columns into blocks whose covariance fits."""
    groups, columns = consumer.kept.shape
    most = int((memory_limit / 16 / groups) ** 0.5) if covariance else columns
    count = max(1, -(-columns // max(most, 1)))
    width = -(-columns // count)
    return [slice(start, min(start + width, columns)) for start in range(0, columns, width)]


def _bytes(consumer: Consumer, covariance: bool, memory_limit: int) -> int:
    if not covariance:
        return 8 * consumer.kept.size
    blocks = _blocks(consumer, covariance, memory_limit)
    return sum(16 * consumer.groups * (b.stop - b.start) ** 2 for b in blocks)


def parts_that_fit(consumers: Sequence[Consumer], covariance: bool, memory_limit: int) -> Iterable[list[Consumer]]:
    """Yields the consumers in parts whose statistics fit into ``memory_limit`` bytes together."""
    part: list[Consumer] = []
    used = 0
    for consumer in consumers:
        size = _bytes(consumer, covariance, memory_limit)
        if part and used + size > memory_limit:
            yield part
            part, used = [], 0
        part.append(consumer)
        used += size
    if part:
        yield part


def measure(
    coupling: Coupling,
    part: Sequence[Consumer],
    inputs: Iterable[Sequence[Tensor]],
    *,
    covariance: bool,
    memory_limit: int,
) -> list[Blocks]:
    """Returns the moments of what each consumer reads in the dense model, by blocks of columns that fit, in one pass."""
    blocks = [[(b, Moments()) for b in _blocks(consumer, covariance, memory_limit)] for consumer in part]
    at: dict[fx.Node, list[int]] = {}
    for i, consumer in enumerate(part):
        at.setdefault(consumer.node, []).append(i)
    run = Run(Selection.nothing(coupling))
    for number, batch in enumerate(inputs):
        waiting = len(part)
        for node, values in run.steps(batch):
            for i in at.get(node, ()):
                rows = part[i].choose(values[node].shape, memory_limit, number)
                columns = part[i].columns(values[part[i].source], rows)
                for block, moments in blocks[i]:
                    moments.add(columns[..., block]) if covariance else _add_mean(moments, columns[..., block])
                waiting -= 1
            if not waiting:
                break
    return blocks


def _add_mean(moments: Moments, x: Tensor) -> None:
    mean = x.mean(dim=0, dtype=torch.float64)
    total = moments.count + len(x)
    moments.mean_x = mean if not moments.count else moments.mean_x + (mean - moments.mean_x) * (len(x) / total)
    moments.count = total

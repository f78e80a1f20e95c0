"""Joint choice: greedy removal of what the kept units reconstruct best, and an allocation over layers by sensitivity.

Within a group the order is that of `fxprune.scoring.engine.elimination`. An error at a layer's output y counts as much as it
moves the model's outputs, to first order: ``h_o = E[sum over positions (d (v . outputs) / d y_o)^2]`` with random signs v
(the diagonal of the Gauss-Newton matrix, estimated as by Hutchinson 1990), so no labels are needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune._base.errors import ScorerError
from fxprune.algebra.channels import Ids
from fxprune.capturing.inputs import Flat
from fxprune.coupling.selection import Selection
from fxprune.coupling.units import Group
from fxprune.recovery.consumers import Consumer, find_consumers
from fxprune.recovery.moments import Blocks, measure, parts_that_fit
from fxprune.scoring.engine.columns import Reading, readings_of, table_of
from fxprune.scoring.engine.elimination import Reader, eliminate
from fxprune.scoring.engine.gradients import batch_size, by_unit, gradients
from fxprune.scoring.engine.shares import shares, without_outliers
from fxprune.scoring.scorer import Context, register_scorer

#: A group's whole counts by this power in the allocation.
_WHOLE = 0.25


@dataclass(frozen=True, slots=True)
class Joint:
    """The error that is left once the kept units have made up for a removed one, all earlier removals included.

    Attributes:
        ridge: damping of the reconstruction, as a share of the mean variance of a layer's inputs.
        samples: how many samples, at most, tell how much a layer's error matters (whole batches, one at least).
    """

    ridge: float = 1e-2
    samples: int = 512
    name: str = "joint"
    needs: tuple[str, ...] = ("activations", "gradients")
    per_cost: bool = True
    defaults: Mapping[str, Any] = field(default_factory=lambda: {"recover": "sequential"})

    def score(self, context: Context) -> dict[str, Tensor]:
        """Returns scores, ``[units]`` each, that rise along each group's order of removal (see `allocate`).

        Units that no linear layer reads are ranked by what masking each alone moves, to first order.

        Raises:
            CalibrationError: a layer's inputs overflow.
            ScorerError: no output of the model has a derivative.
        """
        coupling = context.coupling
        consumers, _ = find_consumers(Selection.nothing(coupling), every=True)
        readings = readings_of(coupling, consumers)
        unread = [group for group in coupling.groups if not readings[group.name]]
        used = {r.consumer.node: r.consumer for group in readings.values() for r in group}
        weights, alone = _sensitivity(context, list(used.values()), self.samples, bool(unread))
        scores = {group.name: _by_masking(group, alone) for group in unread}
        read = [group for group in coupling.groups if readings[group.name]]
        for part in parts_that_fit(
            read, lambda group: _sizes(r.consumer for r in readings[group.name]), context.memory_limit // 2
        ):
            moments = _moments(context, [r.consumer for group in part for r in readings[group.name]])
            for group in part:
                count = len(group.units)
                readers = [x for r in readings[group.name] for x in _readers(context, r, moments, weights, count)]
                scores[group.name] = allocate(*eliminate(readers, count, self.ridge))
        return {group.name: scores[group.name] for group in coupling.groups}


def allocate(order: Sequence[int], errors: Sequence[float]) -> Tensor:
    """Returns scores for the units of one group, ``[units]``, strictly rising along ``order``, that compare across groups.

    A unit's score is its error as a share of all that is left of its group (see `fxprune.scoring.engine.shares`), outliers cut, times
    the fourth root of the group's whole: between errors counted as they are, which empties the layers that matter little,
    and shares alone, for which all layers matter alike.
    """
    rising = without_outliers(torch.as_tensor(errors, dtype=torch.float64).cummax(0).values)
    share = shares(rising) * rising.sum() ** _WHOLE
    steps = torch.arange(1, len(share) + 1, dtype=share.dtype)
    ties = 1e-9 * max(share.tolist(), default=0.0) + torch.finfo(share.dtype).tiny  # equal scores go in the order found
    scores = torch.empty_like(share)
    scores[list(order)] = share * (1 + 1e-9 * steps) + ties * steps
    return scores


def _first(context: Context, samples: int) -> Iterator[tuple[Flat, None]]:
    """Yields the first batches that hold so many samples, without targets."""
    seen = 0
    for flat in context.inputs:
        yield flat, None
        seen += batch_size(context.coupling, flat)
        if seen >= samples:
            return


def _sensitivity(
    context: Context, consumers: Sequence[Consumer], samples: int, masks: bool
) -> tuple[dict[fx.Node, Tensor], Tensor]:
    """Returns ``h[groups, outputs]`` of each layer, and the mean squared effect of masking each unit, ``[units]``."""
    generator = torch.Generator().manual_seed(context.seed)

    def projection(outputs: Any, _: Any) -> Tensor:
        parts = [
            (leaf.float() * _signs(leaf, generator)).sum() / leaf.detach().float().std().clamp_min(1e-12)
            for leaf in pytree.tree_leaves(outputs)
            if isinstance(leaf, Tensor) and leaf.requires_grad and leaf.numel() > 1
        ]
        if not parts:
            raise ScorerError(f"method 'joint' needs an output with a derivative, got {type(outputs).__name__}")
        return torch.stack(parts).sum()

    nodes = [consumer.node for consumer in consumers]
    found: dict[fx.Node, Tensor] = {}
    masked, count = torch.zeros(len(context.coupling.units), dtype=torch.float64), 0
    for batch in gradients(context.coupling, _first(context, samples), projection, nodes=nodes, gates=masks):
        scale = 1 / batch.samples  # `gradients` multiplies the loss, a mean elsewhere, by the samples
        for consumer in consumers:
            slope = batch.values[consumer.node][1].double() * scale
            every = torch.arange(consumer.samples(slope.shape), device=slope.device)
            squares = consumer.outputs(slope, every).square().sum(dim=0)
            found[consumer.node] = found.get(consumer.node, torch.zeros_like(squares)) + squares
        if masks:
            effect = by_unit(context.coupling, batch.gates, batch.samples) * scale
            masked += effect.square().sum(dim=0).cpu()
        count += batch.samples
    return {node: squares / max(count, 1) for node, squares in found.items()}, masked / max(count, 1)


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.randint(0, 2, like.shape, generator=generator) * 2 - 1).to(like.device, torch.float32)


def _by_masking(group: Group, alone: Tensor) -> Tensor:
    effect = alone[torch.from_numpy(group.units)]
    order = effect.argsort(stable=True)
    return allocate(order.tolist(), effect[order].tolist())


def _sizes(consumers: Iterable[Consumer]) -> dict[fx.Node, int]:
    """Returns the bytes of each layer's covariance."""
    return {c.node: 16 * c.groups * c.kept.shape[1] ** 2 for c in consumers}


@torch.no_grad()
def _moments(context: Context, consumers: Iterable[Consumer]) -> dict[fx.Node, Blocks]:
    """Returns the covariances of what each layer reads, about zero where its shift has no home."""
    part = list({consumer.node: consumer for consumer in consumers}.values())
    limit = context.memory_limit // 2
    whole = sum(_sizes(part).values())
    limit = limit if whole <= limit else max(limit // len(part), 1)
    found = measure(context.coupling, part, context.inputs, covariance=True, memory_limit=limit)
    for consumer, blocks in zip(part, found, strict=True):
        for _, block in blocks if consumer.home is None else ():
            block.raw()
    return {consumer.node: blocks for consumer, blocks in zip(part, found, strict=True)}


def _readers(
    context: Context, reading: Reading, moments: Mapping[fx.Node, Blocks], weights: Mapping[fx.Node, Tensor], count: int
) -> Iterator[Reader]:
    """Yields a reader for each block of each convolution group that holds columns of the units."""
    consumer = reading.consumer
    weight = context.tensor(consumer.weight)
    matrix = consumer.matrix(weight).double() * weights[consumer.node].sqrt()[:, :, None].to(weight.device)
    for g in range(consumer.groups):
        for block, found in moments[consumer.node]:
            columns = _table(reading, g, block, count)
            if columns.shape[1] and found.count:
                gram = found.xx[g] / found.count
                yield Reader(gram, matrix[g][:, block], torch.from_numpy(columns).to(gram.device))


def _table(reading: Reading, g: int, block: slice, count: int) -> Ids:
    """Returns the columns of each unit in one block, counted from its start, filled up with the block's width."""
    inside = (reading.group == g) & (reading.column >= block.start) & (reading.column < block.stop)
    return table_of(reading.unit[inside], reading.column[inside] - block.start, count, block.stop - block.start)


register_scorer("joint", Joint)

"""Joint choice: greedy removal of what the kept units reconstruct best, and an allocation over layers by sensitivity.

Within a group the order is that of `fxprune.scoring.engine.elimination`. An error at a layer's output counts as much as it moves
the loss, to first order (`fxprune.scoring.engine.metric`). Without targets, that is the outputs along random signs v,
``L = v . outputs`` (the Gauss-Newton matrix, estimated as by Hutchinson 1990), or the likelihood of what the model itself draws from
its ``logits`` (the Fisher information): no labels are needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional
from torch.utils import _pytree as pytree

from fxprune._base.errors import CalibrationError, ScorerError
from fxprune.algebra.channels import Ids
from fxprune.capturing.inputs import Flat
from fxprune.coupling.selection import Selection
from fxprune.coupling.unit_scores import STAYS
from fxprune.coupling.units import Group
from fxprune.recovery.consumers import Consumer, find_consumers
from fxprune.recovery.measuring import Blocks, measure, parts_that_fit
from fxprune.scoring.causal import causal_loss
from fxprune.scoring.engine.columns import Reading, readings_of, table_of
from fxprune.scoring.engine.elimination import Reader, eliminate
from fxprune.scoring.engine.gradients import batch_size, by_unit, gradients
from fxprune.scoring.engine.metric import Metric
from fxprune.scoring.engine.shares import shares, without_outliers
from fxprune.scoring.loss import default_loss, named_logits
from fxprune.scoring.scorer import Context, register_scorer

#: A group's whole counts by this power in the allocation.
_WHOLE = 0.25


@dataclass(frozen=True, slots=True)
class Joint:
    """The error that is left once the kept units have made up for a removed one, all earlier removals included.

    Attributes:
        ridge: damping of the reconstruction, as a share of the mean variance of a layer's inputs.
        samples: how many samples, at most, tell how much a layer's error matters (whole batches, one at least).
        full: errors of a layer's outputs count together, by the loss's gradients where there are targets; otherwise each alone, by
            the outputs.
        curves: groups compare by their errors as they are, on the lower hull of each group's; otherwise see `allocate`.
    """

    ridge: float = 1e-2
    samples: int = 512
    full: bool = False
    curves: bool = False
    name: str = "joint"
    needs: tuple[str, ...] = ("activations", "gradients")
    per_cost: bool = True
    defaults: Mapping[str, Any] = field(default_factory=lambda: {"recover": "sequential"})

    @property
    def needs_targets(self) -> bool:
        """Whether it fails without targets: it takes them if there are any."""
        return False

    def score(self, context: Context) -> dict[str, Tensor]:
        """Returns scores, ``[units]`` each, that rise along each group's order of removal (see `allocate`, `hull`).

        Units that no linear layer reads are ranked by what masking each alone moves, to first order.

        Raises:
            CalibrationError: a layer's inputs overflow.
            ScorerError: no output of the model has a derivative.
        """
        coupling, rising = context.coupling, hull if self.curves else allocate
        consumers, _ = find_consumers(Selection.nothing(coupling), every=True)
        readings = readings_of(coupling, consumers)
        unread = [group for group in context.groups if not readings[group.name]]
        read = [group for group in context.groups if readings[group.name]]
        used = {r.consumer.node: r.consumer for group in read for r in readings[group.name]}
        scores = {group.name: torch.full((len(group.units),), STAYS) for group in coupling.groups}
        if not context.groups:
            return scores
        weights, alone = _weights(context, list(used.values()), self, bool(unread))
        scores |= {group.name: rising(*_by_masking(group, alone)) for group in unread}
        for part in parts_that_fit(
            read, lambda group: _sizes(r.consumer for r in readings[group.name]), context.memory_limit // 2
        ):
            moments = _moments(context, [r.consumer for group in part for r in readings[group.name]])
            for group in part:
                count = len(group.units)
                readers = [x for r in readings[group.name] for x in _readers(r, moments, weights, count)]
                scores[group.name] = rising(*eliminate(readers, count, self.ridge))
        return scores


def hull(order: Sequence[int], errors: Sequence[float]) -> Tensor:
    """Returns scores for the units of one group, ``[units]``, strictly rising along ``order``: slopes of the errors' lower hull.

    What so many removals cost is the sum of their errors; the greatest convex function below that is what a budget can use,
    and its slopes rise. Ranking them by cost meets a budget at the least sum of errors (to one step of each group).
    """
    slopes: list[tuple[float, int]] = []  # mean error, units
    for error in errors:
        mean, many = error, 1
        while slopes and slopes[-1][0] >= mean:
            before, count = slopes.pop()
            mean, many = (mean * many + before * count) / (many + count), many + count
        slopes.append((mean, many))
    values = torch.tensor([mean for mean, many in slopes for _ in range(many)], dtype=torch.float64)
    return _strictly(order, values)


def allocate(order: Sequence[int], errors: Sequence[float]) -> Tensor:
    """Returns scores for the units of one group, ``[units]``, strictly rising along ``order``, that compare across groups.

    A unit's score is its error as a share of all that is left of its group (see `fxprune.scoring.engine.shares`), outliers cut, times
    the fourth root of the group's whole: between errors counted as they are, which empties the layers that matter little,
    and shares alone, for which all layers matter alike.
    """
    rising = without_outliers(torch.as_tensor(errors, dtype=torch.float64).cummax(0).values)
    share = shares(rising) * rising.sum() ** _WHOLE
    return _strictly(order, share)


def _strictly(order: Sequence[int], rising: Tensor) -> Tensor:
    """Returns values that rise along ``order``, ``[units]``, by unit; equal ones go in the order found."""
    steps = torch.arange(1, len(rising) + 1, dtype=rising.dtype)
    ties = 1e-9 * max(rising.tolist(), default=0.0) + torch.finfo(rising.dtype).tiny
    scores = torch.empty_like(rising)
    scores[list(order)] = rising * (1 + 1e-9 * steps) + ties * steps
    return scores


def _first(context: Context, samples: int, labelled: bool) -> Iterator[tuple[Flat, Any]]:
    """Yields the first batches that hold so many samples, with their targets if they are asked for."""
    batches = context.inputs.labelled("obs") if labelled else ((flat, None) for flat in context.inputs)
    seen = 0
    for flat, targets in batches:
        yield flat, targets
        seen += batch_size(context.coupling, flat)
        if seen >= samples:
            return


def _labelled(context: Context) -> bool:
    """Returns whether the batches have targets."""
    try:
        return next(context.inputs.labelled("obs"), None) is not None
    except CalibrationError:
        return False


class _Objective:
    """What gradients are of, ``loss(outputs, targets)``: the given loss, or without targets what the outputs themselves say."""

    def __init__(self, context: Context, scorer: Joint) -> None:
        self.generator = torch.Generator().manual_seed(context.seed)
        self.loss, self.scorer, self.full = context.loss, scorer.name, scorer.full
        self.own = scorer.full and context.loss not in (
            default_loss,
            causal_loss,
        )  # the caller's, which may want no targets

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        if targets is not None or self.own:
            return self.loss(outputs, targets)
        scores = named_logits(outputs)
        if self.full and scores is not None and scores.requires_grad and scores.dim() > 1:
            # classes lie last, but for maps of them, ``[batch, classes, height, width]``
            rows = (scores if scores.dim() < 4 else scores.movedim(1, -1)).flatten(0, -2).float()
            if rows.shape[1] > 1:
                drawn = torch.multinomial(rows.detach().softmax(-1).cpu(), 1, generator=self.generator)[:, 0]
                return functional.cross_entropy(rows, drawn.to(rows.device), reduction="sum")
        found = [
            (leaf.float() * _signs(leaf, self.generator)).sum() / _scale(leaf.detach().float())
            for leaf in pytree.tree_leaves(outputs)
            if isinstance(leaf, Tensor) and leaf.requires_grad and leaf.numel()
        ]
        if not found:
            kind = type(outputs).__name__
            raise ScorerError(f"method {self.scorer!r} needs an output with a derivative, got {kind}")
        return torch.stack(found).sum()


def _weights(
    context: Context, consumers: Sequence[Consumer], scorer: Joint, masks: bool
) -> tuple[dict[fx.Node, Tensor], Tensor]:
    """Returns each layer's weights as its error counts (`Metric`), and the mean squared effect of masking each unit, ``[units]``."""
    metrics = {c.node: Metric(c, c.matrix(context.tensor(c.weight)).double(), scorer.full) for c in consumers}
    masked, count = torch.zeros(len(context.coupling.units), dtype=torch.float64), 0
    labelled, objective = scorer.full and _labelled(context), _Objective(context, scorer)
    batches = _first(context, scorer.samples, labelled)
    for batch in gradients(context.coupling, batches, objective, nodes=metrics, gates=masks):
        scale = (
            1.0 if labelled else 1 / batch.samples
        )  # `gradients` multiplies a mean by the samples, and this is a sum
        for node, metric in metrics.items():
            metric.add(batch.values[node][1] * scale)
        if masks:
            effect = by_unit(context.coupling, batch.gates, batch.samples) * scale
            masked += effect.square().sum(dim=0).cpu()
        count += batch.samples
    return {node: metric.scaled(count) for node, metric in metrics.items()}, masked / max(count, 1)


def _scale(outputs: Tensor) -> Tensor:
    """Returns how far outputs, ``[...]``, vary; one alone counts as it is."""
    found: Tensor = (outputs.std() if outputs.numel() > 1 else outputs.abs().sum()).clamp_min(1e-12)
    return found


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.randint(0, 2, like.shape, generator=generator) * 2 - 1).to(like.device, torch.float32)


def _by_masking(group: Group, alone: Tensor) -> tuple[list[int], list[float]]:
    """Returns the units of a group by what masking each alone moves, and what that is."""
    effect = alone[torch.from_numpy(group.units)]
    order = effect.argsort(stable=True)
    return order.tolist(), effect[order].tolist()


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
    found = measure(Selection.nothing(context.coupling), part, context.inputs, covariance=True, memory_limit=limit)
    for consumer, blocks in zip(part, found, strict=True):
        for _, block in blocks if consumer.home is None else ():
            block.raw()
    return {consumer.node: blocks for consumer, blocks in zip(part, found, strict=True)}


def _readers(
    reading: Reading, moments: Mapping[fx.Node, Blocks], weights: Mapping[fx.Node, Tensor], count: int
) -> Iterator[Reader]:
    """Yields a reader for each block of each convolution group that holds columns of the units."""
    consumer = reading.consumer
    matrix = weights[consumer.node]
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
register_scorer("obs", lambda: Joint(full=True, curves=True, name="obs", defaults={"recover": "covariance"}))

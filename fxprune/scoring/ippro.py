"""IPPRO (arXiv 2507.14171): how one gradient step moves a filter in projective space, whatever its magnitude."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxprune._base.errors import CalibrationError, ScorerError
from fxprune.algebra.channels import Ids
from fxprune.coupling.unit_scores import accumulate
from fxprune.ops.registry import bind, is_kind
from fxprune.scoring.engine.columns import in_parts, wide
from fxprune.scoring.engine.gradients import Gradients, gradients
from fxprune.scoring.engine.targets import Target, find_targets
from fxprune.scoring.scorer import Context, register_scorer
from fxprune.twin.interpreter import Run

TARGETS = ("gamma", "gamma_beta", "weight")
READINGS = ("literal", "reversed", "absolute", "offset", "absolute_offset")
AGGREGATES = ("mean", "sum", "max")


@dataclass(frozen=True, slots=True, eq=False)
class Filters:
    """What the formulas need of filters F with an offset D each; float64, one entry for each filter.

    Attributes:
        square: ``|F|^2``.
        slope: ``|dL/dF|^2``.
        product: ``<F, dL/dF>``.
        offset: ``dL/dD``.
    """

    square: Tensor
    slope: Tensor
    product: Tensor
    offset: Tensor


def measure(filters: Tensor, gradient: Tensor, offset: Tensor) -> Filters:
    """Returns the figures of filters ``[n, *]`` with gradients of that shape and ``dL/dD`` ``[n]``."""
    f, g = (in_parts(part.detach()).double().flatten(1) for part in (filters, gradient))
    return Filters(f.square().sum(1), g.square().sum(1), (f * g).sum(1), offset.detach().double())


def offset_of(square: Tensor) -> Tensor:
    """Returns D of the projective points ``[F : D]`` of filters with these ``|F|^2``: ``|F|``, or 1 for F = 0."""
    return torch.where(square > 0, square.sqrt(), 1.0)


def tangent(filters: Filters, step: float) -> Tensor:
    """Returns ``|F'| / |D'|`` after one gradient step from ``[F : |F|]`` (arXiv 2507.14171, section 3); 0 for F = 0.

    ``F' = F - step dL/dF`` and ``D' = |F| - step dL/dD``. A step of 0 gives 1 for every other filter.
    """
    moved = filters.square - 2 * step * filters.product + step**2 * filters.slope
    offset = (offset_of(filters.square) - step * filters.offset).abs()
    ratio = moved.clamp_min(0).sqrt() / offset.clamp_min(torch.finfo(torch.float32).tiny)
    return torch.where(filters.square > 0, ratio, 0.0)


def first_order(filters: Filters) -> Tensor:
    """Returns ``s = (dL/dD)/|F| - <F, dL/dF>/|F|^2``, ``[filters]``; 0 for F = 0.

    To first order ``tangent = 1 + step s``.
    """
    norm = offset_of(filters.square)
    value = filters.offset / norm - filters.product / norm.square()
    return torch.where(filters.square > 0, value, 0.0)


class BatchStatistics(Run):
    """A pass in which batch norm takes the statistics of the batch, as in training; running ones are left alone."""

    def step(self, node: fx.Node, values: Mapping[fx.Node, Any], feed: Iterator[Tensor]) -> Any:
        """Returns the value of one node, ``[...]``.

        Raises:
            CalibrationError: a channel has a single value in the batch, hence no variance.
        """
        if not is_kind(node, "batch_norm"):
            return super().step(node, values, feed)
        a = bind(node)
        x, weight, bias = fx.node.map_arg((a.input, a.weight, a.bias), values.__getitem__)
        if x.numel() == x.shape[1]:
            raise CalibrationError(
                f"{node.name}: batch norm in training mode needs more than one value a channel, got input "
                f"{list(x.shape)}: give larger calibration batches or batch_statistics=False"
            )
        return torch.batch_norm(x, weight, bias, None, None, True, 0.0, a.eps, a.cudnn_enabled)


@dataclass(frozen=True, slots=True)
class Ippro:
    """PROscore: the tangent of a filter's projective point after one gradient step on the calibration set.

    The model is never updated. Scores of different layers are ranked as they are; the paper gives every layer a ratio.

    Attributes:
        target: what F is: ``"gamma"`` or ``"gamma_beta"``, the scale (and shift) of the batch norm behind the layer,
            and the layer's weight where there is none; or ``"weight"`` throughout.
        step: the step's size; 0 or None for the first-order form, which needs none.
        reading: ``"literal"``: the lowest tangent goes first, as the text says; ``"reversed"``: the highest;
            ``"absolute"``: what moves least; ``"offset"`` and ``"absolute_offset"``: the lowest, the smallest
            ``(dL/dD)/|F|`` alone. `docs/ippro.md` compares them.
        batch_statistics: run batch norm in training mode while scoring.
        aggregate: ``"mean"``, ``"sum"`` or ``"max"`` over the layers that make a unit.

    Raises:
        ScorerError: an attribute is none of these.
    """

    target: str = "gamma"
    step: float | None = None
    reading: str = "absolute_offset"
    batch_statistics: bool = False
    aggregate: str = "mean"
    name: str = "ippro"
    needs: tuple[str, ...] = ("weights", "activations", "gradients")
    per_cost: bool = False
    defaults: Mapping[str, Any] = field(default_factory=lambda: {"recover": "covariance"})

    def __post_init__(self) -> None:
        for name, known in (("target", TARGETS), ("reading", READINGS), ("aggregate", AGGREGATES)):
            if getattr(self, name) not in known:
                raise ScorerError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.step is not None and not 0 <= self.step < float("inf"):
            raise ScorerError(f"step must be a size of at least 0, or None, got {self.step!r}")

    def score(self, context: Context) -> dict[str, Tensor]:
        """Returns for each unit, ``[units]``, its filters' score over the layers that make it; a zero filter is its layer's lowest.

        Raises:
            CalibrationError: the calibration data have no targets.
        """
        return combine(context, collect(context, self), self)


def collect(context: Context, scorer: Ippro) -> list[tuple[Target, Filters]]:
    """Returns the filters of every layer that makes units, with gradients as means over the calibration samples.

    Of the scorer's attributes it asks for ``target`` and ``batch_statistics`` alone, so that other readings of the same
    pass can be had from `combine`.

    Raises:
        CalibrationError: there are no targets, or they do not fit.
    """
    found = find_targets(context.coupling, scorer.target)
    names = dict.fromkeys(name for target in found for name, _ in target.filters)
    nodes = {node for target in found for site in target.sites for node in (site.x, site.psi)}
    run = BatchStatistics if scorer.batch_statistics else Run
    slopes: dict[str, Tensor] = {}
    offsets = [torch.zeros(target.size, dtype=torch.float64) for target in found]
    samples, batches = 0, context.inputs.labelled(scorer.name)
    for batch in gradients(context.coupling, batches, context.loss, parameters=names, nodes=nodes, run=run):
        samples += batch.samples
        for name, gradient in batch.parameters.items():
            slopes[name] = slopes.get(name, 0) + gradient.to(torch.promote_types(gradient.dtype, torch.float64))
        for target, offset in zip(found, offsets, strict=True):
            offset += _offset(target, batch)
    mean = {name: slope / max(samples, 1) for name, slope in slopes.items()}
    pairs = zip(found, offsets, strict=True)
    return [(target, _filters(context, target, mean, offset / max(samples, 1))) for target, offset in pairs]


def _offset(target: Target, batch: Gradients) -> Tensor:
    """Returns ``dL/dD``: the sum over batch and positions of ``x * dL/dpsi`` (arXiv 2507.14171), ``[size]``."""
    total = torch.zeros(target.size, dtype=torch.float64)
    for site in target.sites:
        x, slope = batch.values[site.x][0], batch.values[site.psi][1]
        rows = torch.real(wide(x).conj() * slope).movedim(site.dim, 0).flatten(1).sum(1, dtype=torch.float64)
        total += _fold(rows, target.size).cpu()
    return total


def _fold(values: Tensor, size: int) -> Tensor:
    """Sums over convolution groups, where a coordinate of the weight stands for a channel in each."""
    return values.reshape(-1, size).sum(0)


def _filters(context: Context, target: Target, slopes: Mapping[str, Tensor], offset: Tensor) -> Filters:
    """Returns the figures of a layer's filters; a parameter that is used as it stands is its own output."""
    parts = []
    for name, dim in target.filters:
        pair = context.tensor(name), slopes[name]
        rows, gradient = (t.movedim(dim, 0).reshape(t.shape[dim], -1).cpu() for t in pair)
        part = measure(rows, gradient, torch.zeros(len(rows)))
        parts.append(torch.stack([_fold(f, target.size) for f in (part.square, part.slope, part.product)]))
    square, slope, product = torch.stack(parts).sum(0)
    return Filters(square, slope, product, offset if target.sites else product)


def combine(context: Context, collected: Sequence[tuple[Target, Filters]], scorer: Ippro) -> dict[str, Tensor]:
    """Returns each unit's score, ``[units]``: read in each layer that makes it, then aggregated; 0 if no layer makes it.

    A unit's filter in a layer is all that it has there: the rows of a head are one filter.
    """
    count, gather = context.zeros(), np.maximum if scorer.aggregate == "max" else np.add
    total = count - (np.inf if scorer.aggregate == "max" else 0.0)
    for target, filters in collected:
        for axis in target.axes:
            channels, filters_here = _by_channel(axis.labels, filters)
            values = read(filters_here, scorer.reading, scorer.step or 0.0).numpy()
            count[channels] += 1
            gather.at(total, channels, values)
    total[count == 0] = 0.0
    return context.by_group(total / np.maximum(count, 1) if scorer.aggregate == "mean" else total)


def read(filters: Filters, reading: str, step: float = 0.0) -> Tensor:
    """Returns the scores of one layer's filters, ``[filters]``, the lowest goes first; a zero filter gets 0, or less if others do.

    Args:
        filters: of one layer.
        reading: see `Ippro`.
        step: of the tangent; 0 for the first-order form.
    """
    alive = filters.square > 0
    if reading.endswith("offset"):
        value = filters.offset / offset_of(filters.square)
    else:
        value = tangent(filters, step) if step else first_order(filters)
    if reading.startswith("absolute"):
        value = (value - 1).abs() if step and reading == "absolute" else value.abs()
    elif reading == "reversed":
        value = -value
    least = float(value[alive].min()) if alive.any() else 0.0
    return torch.where(alive, value, least - 1 if least < 0 else 0.0)


def _by_channel(labels: Ids, filters: Filters) -> tuple[Ids, Filters]:
    """Returns the channels on an axis, and what their coordinates sum to."""
    channels, inverse = np.unique(labels, return_inverse=True)
    sums = []
    for part in fields(Filters):
        values = np.zeros(len(channels))
        accumulate(values, inverse.reshape(labels.shape), getattr(filters, part.name))
        sums.append(torch.from_numpy(values))
    return channels, Filters(*sums)


register_scorer("ippro", Ippro)
register_scorer("ippro-literal", lambda: Ippro(reading="literal", name="ippro-literal", defaults={"recover": None}))

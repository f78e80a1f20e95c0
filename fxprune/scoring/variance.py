"""Variance of what a unit sends on (VBP, arXiv 2507.12988): a unit that hardly varies is replaced by its mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxprune._base.errors import ScorerError
from fxprune._base.ranks import gathered, world
from fxprune.algebra.axes import size_of
from fxprune.coupling.selection import Selection
from fxprune.coupling.unit_scores import accumulate
from fxprune.ops.tracer import Contraction
from fxprune.scoring.engine.branches import weights
from fxprune.scoring.engine.columns import by_factor, is_read
from fxprune.scoring.engine.scope import SCOPES, within
from fxprune.scoring.engine.shares import layers_that, remaining_share
from fxprune.scoring.scorer import Context, register_scorer
from fxprune.twin.interpreter import Run
from fxprune.twin.march import ways

#: Elements beyond which a batch is not made float64 first, but only what is summed over it.
_LARGE = 1 << 22
#: Elements that are centred at a time: they stay in the processor's cache.
_CHUNK = 1 << 19


class Welford:
    """Mean and variance of each coordinate along one dimension, streamed in float64 (Welford 1962; Chan et al. 1983)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, value: Tensor, dim: int) -> None:
        """Takes in a batch, ``[...]``; every dimension but ``dim`` is a sample."""
        dim %= value.ndim
        count, others = value.numel() // max(value.shape[dim], 1), [d for d in range(value.ndim) if d != dim]
        x = value.double() if value.numel() < _LARGE else value
        mean = (x.sum(others) if others else x).double() / max(count, 1)
        centre = mean.to(x.dtype).reshape([-1 if d == dim else 1 for d in range(value.ndim)])
        parts = x.split(max(1, _CHUNK * len(x) // max(x.numel(), 1))) if dim else [x]
        norms = [torch.linalg.vector_norm(part - centre, dim=others).double() for part in parts] if others else []
        squares = torch.stack(norms).square().sum(0) if norms else torch.zeros_like(mean)
        self._take(count, mean, squares)

    def _take(self, n: int, mean: Tensor, squares: Tensor) -> None:
        """Takes in ``n`` samples by their mean and centred squares, ``[coordinates]``."""
        if not self.count:
            self.mean, self.squares = torch.zeros_like(mean), torch.zeros_like(squares)
        step, total = mean - self.mean, max(self.count + n, 1)
        self.squares = self.squares + squares + step.square() * (self.count * n / total)
        self.mean = self.mean + step * (n / total)
        self.count += n

    def share(self) -> None:
        """Takes in what other processes have seen."""
        every, self.count = gathered((self.count, self.mean, self.squares)), 0
        for count, mean, squares in every:
            self._take(count, mean, squares)

    @property
    def variance(self) -> Tensor:
        """The variance (biased), ``[coordinates]``."""
        return self.squares / max(self.count, 1)


@dataclass(frozen=True, slots=True)
class Variance:
    """The variance that a unit brings into the layers that read it.

    Attributes:
        weighted: multiply a coordinate's variance by the squared norm of the reader's weights for it, as a share of
            the reader's whole; False gives VBP's raw variance, ranked as it is.
        scope: ``"all"``, or ``"mlp"``: only hidden units of MLPs may go (see `fxprune.scoring.engine.scope.mlp_groups`).
    """

    weighted: bool = True
    scope: str = "all"
    name: str = "variance"
    needs: tuple[str, ...] = ("activations",)
    per_cost: bool = True
    defaults: Mapping[str, Any] = field(default_factory=lambda: {"recover": "covariance"})

    def __post_init__(self) -> None:
        """Refuses a scope that there is not."""
        if self.scope not in SCOPES:
            raise ScorerError(f"scope must be one of {', '.join(SCOPES)}, got {self.scope!r}")

    def score(self, context: Context) -> dict[str, Tensor]:
        """Returns, summed over readers and coordinates, ``Var[x_i] * |W_i|^2`` (weighted) or ``Var[x_i]``.

        Raises:
            NothingToPruneError: ``scope="mlp"``, and the model has no MLP.
        """
        scores = self._all(context)
        if self.weighted:
            scores = remaining_share(scores, layers_that(context, read=False))
            weight = _in_streams(context)
            scores = {name: score * weight[name] for name, score in scores.items()}
        return within(context.coupling, scores, self.scope)

    @torch.no_grad()
    def _all(self, context: Context) -> dict[str, Tensor]:
        coupling, total = context.coupling, context.zeros()
        readers = [contraction for contraction in coupling.contractions if is_read(coupling, contraction.axis)]
        places = [place for c in readers for place in ((c.source, c.dim), c.other) if place is not None]
        moments = {place: Welford() for place in places}
        run = Run(Selection.nothing(coupling))
        for _, way in ways(run, context.inputs, context.memory_limit // 2):
            for node, alive in way:
                for (source, dim), welford in moments.items():
                    if source is node:
                        welford.add(alive[node], dim)
        for place in places if world() > 1 else ():
            moments[place].share()
        for contraction in readers:
            values = moments[contraction.source, contraction.dim].variance
            if self.weighted:
                values = values * _sensitivity(context, contraction, moments, values)
                values = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
            for labels, sums in by_factor(coupling, contraction.axis, values):
                accumulate(total, labels, sums)
        return context.by_group(total)


def _in_streams(context: Context) -> dict[str, float]:
    """Returns for each group how much what its readers give counts where it is added: a mean over them, 1 for those beside streams."""
    readers = [c for c in context.coupling.contractions if is_read(context.coupling, c.axis)]
    known = weights(context.coupling, readers, next(iter(context.inputs)))
    total, count = context.zeros(), context.zeros()
    for contraction in readers:
        ones = torch.ones(size_of(contraction.axis), dtype=torch.float64)
        for labels, each in by_factor(context.coupling, contraction.axis, ones):
            accumulate(count, labels, each)
            accumulate(total, labels, each * known.get(contraction.node, 1.0))
    counted = context.by_group(count)
    return {
        name: float(share.sum() / counted[name].sum().clamp_min(1.0)) if len(share) else 1.0
        for name, share in context.by_group(total).items()
    }


def _sensitivity(
    context: Context, contraction: Contraction, moments: Mapping[tuple[fx.Node, int], Welford], like: Tensor
) -> Tensor:
    """Returns how much of a coordinate's variance the reader passes on: the squared norm of what multiplies it."""
    if contraction.weight is not None:
        weight, dim = context.tensor(str(contraction.weight.target)), contraction.weight_dim
        groups = len(like) // weight.shape[dim]  # of a grouped convolution: each has columns and outputs of its own
        parts = weight.double().square()[..., None].unflatten(0, (groups, -1))  # a vector has one output
        return torch.flatten(parts.transpose(1, dim + 1).flatten(2).sum(dim=2))
    if contraction.other is not None:
        other = moments[contraction.other]
        return other.variance + other.mean.square()
    return torch.ones_like(like)


register_scorer("variance", Variance)
register_scorer("vbp", lambda: Variance(False, "mlp", "vbp", per_cost=False, defaults={"recover": "mean_shift"}))

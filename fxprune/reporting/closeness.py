"""Sums over batches that two models' outputs are compared by: values, class scores, scores of next tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from fxprune._base.ranks import gathered, summed
from fxprune.scoring.causal import next_tokens
from fxprune.scoring.loss import IGNORED

#: So many numbers are compared at a time, in float64.
_AT_ONCE = 1 << 22


@dataclass(slots=True)
class Values:
    """Sums over one output. Its mean is that of each coordinate; of all values if sizes vary."""

    error: float = 0.0
    squares: float = 0.0
    whole: float = 0.0
    samples: int = 0
    values: int = 0
    totals: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))  # of each coordinate
    varying: bool = False

    def add(self, dense: Tensor, pruned: Tensor, *, places: bool = False) -> None:
        """Takes in a batch, ``[samples, ...]``; of what is not finite in the dense model's nothing is expected.

        Args:
            dense: the dense model's output.
            pruned: the other one's, of the same shape.
            places: the mean is over places as well: a coordinate is one of the last dimension.
        """
        for a, b in _parts(dense, pruned):
            finite = a.isfinite()
            a, b = (torch.where(finite, x, 0).double() for x in (a, b))
            rows = a.reshape(-1, a.shape[-1] if places else max(a[:1].numel(), 1))
            here = rows.sum(0)
            self.varying |= self.samples > 0 and self.totals.shape != here.shape
            self.totals = here if self.varying or not self.samples else self.totals + here
            self.error += float((a - b).square().sum())
            self.squares += float(a.square().sum())
            self.whole += float(here.sum())
            self.samples += len(rows)
            self.values += int(finite.sum())

    def explained(self) -> float | None:
        """Returns the share of the variance that is left, None where the dense output does not vary."""
        if not math.isfinite(self.error):
            return math.nan
        mean = self.whole**2 / self.values if self.varying else float(self.totals.square().sum()) / self.samples
        spread = self.squares - mean
        return 1 - self.error / spread if spread > 1e-12 * self.squares else None

    def relative(self) -> float:
        """Returns the error as a share of the dense output, NaN if it is not finite."""
        if not math.isfinite(self.error):
            return math.nan
        if not self.squares:
            return math.inf if self.error else 0.0
        return math.sqrt(self.error / self.squares)


def all_values(mine: dict[int, Values]) -> dict[int, Values]:
    """Returns the sums of all processes, by output; each has those of its batches, or none."""
    kinds: dict[int, set[tuple[tuple[int, ...], bool]]] = {}
    for each in gathered({place: (tuple(one.totals.shape), one.varying) for place, one in mine.items()}):
        for place, kind in each.items():
            kinds.setdefault(place, set()).add(kind)
    found = {}
    for place, known in sorted(kinds.items()):
        one, varying = mine.get(place, Values()), len(known) > 1 or any(varies for _, varies in known)
        totals = torch.zeros(min(known)[0] if not varying else (), dtype=torch.float64)
        totals = one.totals if one.samples and not varying else totals
        numbers = torch.tensor(astuple(one)[:5], dtype=torch.float64)
        numbers, totals = summed(numbers, totals)
        error, squares, whole, samples, values = numbers.tolist()
        found[place] = Values(error, squares, whole, int(samples), int(values), totals, varying)
    return found


@dataclass(slots=True)
class Classes:
    """Sums over class scores: the places where the largest is the same, the samples' shares of these, the divergence."""

    same: float = 0.0
    places: float = 0.0
    samples: float = 0.0
    shares: float = 0.0
    squares: float = 0.0
    divergence: float = 0.0

    def add(self, dense: Tensor, pruned: Tensor, counted: Tensor) -> None:
        """Takes in a batch of scores, ``[samples, ..., classes]``, and which places count, ``[samples, ...]``, but where the dense are NaN."""
        for a, b, count in _parts(dense, pruned, counted):
            weights = (count & ~a.isnan().any(-1)).double()
            same = (a.argmax(-1) == b.argmax(-1)).double() * weights
            (f, g), own = _logs(a.double(), b.double()), weights.reshape(len(a), -1).sum(1)
            shares = (same.reshape(len(a), -1).sum(1) / own)[own > 0]
            self.same += float(same.sum())
            self.places += float(weights.sum())
            self.samples += len(shares)
            self.shares += float(shares.sum())
            self.squares += float(shares.square().sum())
            apart = torch.where(f.isfinite(), f.exp() * (f - g), 0.0).sum(-1)
            self.divergence += float(torch.where(weights > 0, apart, 0.0).sum())

    def together(self) -> Classes:
        """Returns the sums of all processes."""
        (found,) = summed(torch.tensor(astuple(self), dtype=torch.float64))
        return Classes(*found.tolist())

    def deviation(self) -> float | None:
        """Returns the standard error of the agreement; one right and one wrong sample are added, so that a few never look certain."""
        if not self.samples:
            return None
        count = self.samples + 2
        mean = (self.shares + 1) / count
        return math.sqrt(max((self.squares + 1) / count - mean**2, 0.0) / self.samples)


def _logs(dense: Tensor, pruned: Tensor) -> tuple[Tensor, Tensor]:
    """Returns log probabilities, ``[..., classes]``, of scores that may be probabilities already."""
    if bool((dense >= 0).all()) and bool(((dense.sum(-1) - 1).abs() < 1e-3).all()):
        return dense.log(), pruned.log()
    return dense.log_softmax(-1), pruned.log_softmax(-1)


@dataclass(slots=True)
class Tokens:
    """Sums over next tokens: what the dense and the pruned scores make of them, in nats."""

    dense: float = 0.0
    pruned: float = 0.0
    count: float = 0.0

    def add(self, dense: Tensor, pruned: Tensor, tokens: Tensor) -> None:
        """Takes in a batch of scores, ``[batch, tokens, classes]``, and the tokens, ``[batch, tokens]``."""
        for a, b, part in _parts(dense, pruned, next_tokens(tokens).to(dense.device)):
            self.dense, self.pruned = self.dense + _nats(a, part), self.pruned + _nats(b, part)
            self.count += int((part != IGNORED).sum())

    def together(self) -> Tokens:
        """Returns the sums of all processes."""
        (found,) = summed(torch.tensor(astuple(self), dtype=torch.float64))
        return Tokens(*found.tolist())

    def perplexity(self) -> tuple[float, float] | None:
        """Returns the perplexities, (dense, pruned); None without tokens."""
        return (_exp(self.dense / self.count), _exp(self.pruned / self.count)) if self.count else None


def _nats(scores: Tensor, tokens: Tensor) -> float:
    flat = scores.flatten(0, 1).double()
    return float(functional.cross_entropy(flat, tokens.flatten(), ignore_index=IGNORED, reduction="sum"))


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf if nats == nats else math.nan


def _parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yields batches, ``[samples, ...]`` each, by as many samples as are to be compared at once."""
    whole = [tensor[None] if tensor.ndim == 0 else tensor for tensor in tensors]
    step = max(1, _AT_ONCE // max(whole[0][:1].numel(), 1))
    for start in range(0, len(whole[0]), step):
        yield tuple(tensor[start : start + step] for tensor in whole)

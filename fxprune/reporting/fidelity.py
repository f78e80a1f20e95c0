"""Fidelity: measures how much of the dense model's outputs is left in a pruned model's, on calibration data."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fxprune._base.errors import brief
from fxprune._base.modes import lent
from fxprune._base.ranks import gathered, own, summed
from fxprune.data.batch import Batch
from fxprune.data.calls import tensors_of
from fxprune.reporting.closeness import Classes, Tokens, Values, all_values
from fxprune.results.fidelity import Fidelity
from fxprune.scoring.causal import told_tokens
from fxprune.scoring.loss import logits_of, named_logits

#: A batch, and what the dense and the pruned model make of it.
Pair: TypeAlias = "tuple[Batch, Any, Any]"


@dataclass(slots=True)
class Reference:
    """A dense model's outputs batch by batch, kept up to a number of bytes and computed again beyond.

    An output is kept with its batch: data may come in another order each time. Of several processes each has its share.

    Attributes:
        model: the dense model.
        batches: calibration batches.
        memory_limit: bytes of batches and outputs that are kept.
        causal: the scores are for the next token.
    """

    model: nn.Module
    batches: Iterable[Batch]
    memory_limit: int = 0
    causal: bool = False
    _kept: dict[int, tuple[Batch, Any]] = field(default_factory=dict)
    _bytes: int = 0

    def of(self, pruned: nn.Module) -> Fidelity:
        """Returns how close a pruned model comes; if one of the two fails, why there is nothing to tell."""
        return measured(self._pairs(pruned), causal=self.causal)

    def _pairs(self, pruned: nn.Module) -> Iterator[Pair]:
        for batch, dense in self._outputs():
            with lent(pruned, batch.args, batch.kwargs):
                result = pruned(*batch.args, **batch.kwargs)
            yield batch, dense, result

    def _outputs(self) -> Iterator[tuple[Batch, Any]]:
        for index, batch in own(self.batches):
            entry = self._kept.get(index)
            if entry is None:
                with lent(self.model, batch.args, batch.kwargs):
                    entry = batch, self.model(*batch.args, **batch.kwargs)
                size = sum(x.nbytes for x in tensors_of((batch.args, batch.kwargs, batch.targets, entry[1])))
                if self._bytes + size <= self.memory_limit:
                    self._bytes += size
                    self._kept[index] = entry
            yield entry


@torch.no_grad()
def measured(pairs: Iterable[Pair], *, causal: bool = False) -> Fidelity:
    """Returns how close outputs are; where they do not compare, or making them fails, why.

    Args:
        pairs: this process's share of the batches, with what the two models make of each.
        causal: scores are for the next token.
    """
    values, classes, tokens = dict[int, Values](), Classes(), Tokens()
    samples, batches, why = 0, 0, ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the models warn of they have before
            for batch, dense, pruned in pairs:
                if why := _unlike(dense, pruned):
                    break
                _take(batch, dense, pruned, values=values, classes=classes, tokens=tokens, causal=causal)
                samples, batches = samples + batch.size, batches + 1
    except Exception as error:  # whatever a model raises: what was compiled is not to be lost
        why = f"not measured: a call of the model fails: {brief(error)}"
    if why := next(filter(None, gathered(why)), ""):
        return Fidelity(why=why)
    values, classes, tokens = all_values(values), classes.together(), tokens.together()
    counted = summed(torch.tensor([samples, batches], dtype=torch.float64))[0].tolist()
    if not values:
        return Fidelity(why="not comparable: the outputs hold no floating numbers")
    shares = [share for one in values.values() if (share := one.explained()) is not None]
    errors = [one.relative() for one in values.values()]
    return Fidelity(
        explained=sum(shares) / len(shares) if shares else None,
        error=sum(errors) / len(errors),
        agreement=classes.same / classes.places if classes.places else None,
        deviation=classes.deviation(),
        divergence=classes.divergence / classes.places if classes.places else None,
        perplexity=tokens.perplexity(),
        samples=int(counted[0]),
        batches=int(counted[1]),
    )


def _unlike(dense: Any, pruned: Any) -> str:
    """Returns why the outputs of one batch do not compare; empty if they do."""
    for a, b in zip_longest(_floats(dense), _floats(pruned)):
        if a is None or b is None:
            return f"not comparable: the dense model gives {len(_floats(dense))} outputs, the pruned one {len(_floats(pruned))}"
        if a.shape != b.shape:
            return (
                f"not comparable: an output is {list(a.shape)} of the dense model and {list(b.shape)} of the pruned one"
            )
    return ""


def _take(
    batch: Batch, dense: Any, pruned: Any, *, values: dict[int, Values], classes: Classes, tokens: Tokens, causal: bool
) -> None:
    """Adds what the outputs of a batch say to the sums."""
    dim = _classes_dim(dense, batch, causal=causal)
    scores = None if dim is None else logits_of(dense)
    for place, (a, b) in enumerate(zip(_floats(dense), _floats(pruned), strict=True)):
        if a.numel():
            one = values.setdefault(place, Values())
            one.add(a.to(b.device), b, places=a is scores and a.ndim == 3)
    if scores is None or dim is None or not scores.numel():
        return
    first, second = (logits_of(outputs).movedim(dim, -1) for outputs in (dense, pruned))
    first = first.to(second.device)
    classes.add(first, second)
    asked = told_tokens(batch, first) if causal and first.ndim == 3 else None
    if asked is not None:
        tokens.add(first, second, asked)


def _floats(outputs: Any) -> list[Tensor]:
    return [x for x in tensors_of(outputs) if x.is_floating_point()]


def _classes_dim(outputs: Any, batch: Batch, *, causal: bool) -> int | None:
    """Returns along which dimension of a model's logits classes lie; None if they are none of the samples, or the targets are values."""
    if all(x.ndim == 0 for x in _floats(outputs)):
        return None
    scores = logits_of(outputs)
    named = named_logits(outputs) is not None or (causal and scores.ndim == 3)
    dim = scores.ndim - 1 if scores.ndim < 4 else 1
    there = (scores.ndim == 2 or (named and scores.ndim > 2)) and len(scores) == batch.size
    targets = batch.targets
    valued = isinstance(targets, Tensor) and targets.is_floating_point() and targets.shape == scores.shape
    return dim if there and not valued and scores.shape[dim] > 1 else None

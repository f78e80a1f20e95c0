"""Fidelity: measures how much of the dense model's outputs is left in a pruned model's, on calibration data."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fxprune._base.errors import FxpruneError, brief
from fxprune._base.modes import lent
from fxprune._base.ranks import gathered, own, summed
from fxprune.data.batch import Batch
from fxprune.data.calls import tensors_of
from fxprune.reporting.closeness import Classes, Tokens, Values, all_values
from fxprune.results.fidelity import Fidelity
from fxprune.scoring.causal import next_tokens, told_tokens
from fxprune.scoring.loss import IGNORED, classes_dim, logits_of, named_logits

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
                entry = batch, self._output(batch)
                size = sum(x.nbytes for x in tensors_of((batch.args, batch.kwargs, batch.targets, entry[1])))
                if self._bytes + size <= self.memory_limit:
                    self._bytes += size
                    self._kept[index] = entry
            yield entry

    def _output(self, batch: Batch) -> Any:
        """Returns what the dense model makes of a batch.

        Raises:
            FxpruneError: it makes something else of it each time.
        """
        states = _random_states()
        output = self._called(batch)
        if any(not torch.equal(a, b) for a, b in zip(states, _random_states(), strict=True)):
            pairs = zip(_floats(output), _floats(self._called(batch)), strict=True)
            if any(not torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs):
                raise FxpruneError("the dense model draws random numbers, and gives other outputs each time")
        return output

    def _called(self, batch: Batch) -> Any:
        with lent(self.model, batch.args, batch.kwargs):
            return self.model(*batch.args, **batch.kwargs)


def _random_states() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]


@torch.no_grad()
def measured(pairs: Iterable[Pair], *, causal: bool = False) -> Fidelity:
    """Returns how close outputs are; where they do not compare, or making them fails, why.

    Args:
        pairs: this process's share of the batches, with what the two models make of each.
        causal: scores are for the next token.
    """
    sums, why = _Sums(causal), ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the models warn of they have before
            for batch, dense, pruned in pairs:
                if why := sums.take(batch, dense, pruned):
                    break
    except Exception as error:  # whatever a model raises: what was compiled is not to be lost
        why = f"not measured: {brief(error)}"
    why = next(filter(None, gathered(why)), "")
    return Fidelity(why=why) if why else sums.fidelity()


@dataclass(slots=True)
class _Sums:
    """What two models' outputs are compared by, over this process's batches.

    Attributes:
        causal: scores are for the next token.
    """

    causal: bool
    values: dict[int, Values] = field(default_factory=dict)
    classes: Classes = field(default_factory=Classes)
    tokens: Tokens = field(default_factory=Tokens)
    samples: int = 0
    batches: int = 0

    def take(self, batch: Batch, dense: Any, pruned: Any) -> str:
        """Takes in what the models make of a batch; returns why it does not compare, if so."""
        alike = _alike(dense, pruned)
        if isinstance(alike, str):
            return alike
        dim = _classes_dim(dense, batch, causal=self.causal)
        scores = None if dim is None else logits_of(dense)
        counted = None if scores is None or dim is None else self._counted(batch, scores.movedim(dim, -1))
        for place, (a, b) in enumerate(alike):
            places = a is scores and a.ndim == 3
            if a is scores and dim is not None and counted is not None and not counted.all():
                a, b = (x.movedim(dim, -1)[counted.to(x.device)] for x in (a, b))
                places = True
            if a.numel():
                one = self.values.setdefault(place, Values())
                one.add(a.to(b.device), b, places=places)
        if dim is not None and counted is not None:
            self._take_scores(batch, counted, *(logits_of(outputs).movedim(dim, -1) for outputs in (dense, pruned)))
        self.samples, self.batches = self.samples + batch.size, self.batches + 1
        return ""

    def _counted(self, batch: Batch, scores: Tensor) -> Tensor:
        """Returns which places of scores ``[samples, ..., classes]`` count, ``[samples, ...]``: neither padded nor left out by the targets."""
        counted = torch.ones(scores.shape[:-1], dtype=torch.bool, device=scores.device)
        if self.causal and scores.ndim == 3 and (tokens := told_tokens(batch, scores)) is not None:
            return next_tokens(tokens).to(scores.device) != IGNORED
        for given, left_out in ((batch.targets, IGNORED), (batch.kwargs.get("attention_mask"), 0)):
            if isinstance(given, Tensor) and not given.is_floating_point() and given.shape == counted.shape:
                counted &= given.to(scores.device) != left_out
        return counted

    def _take_scores(self, batch: Batch, counted: Tensor, dense: Tensor, pruned: Tensor) -> None:
        dense = dense.to(pruned.device)
        self.classes.add(dense, pruned, counted.to(pruned.device))
        if self.causal and dense.ndim == 3 and (tokens := told_tokens(batch, dense)) is not None:
            self.tokens.add(dense, pruned, tokens)

    def fidelity(self) -> Fidelity:
        """Returns what the sums of all processes say."""
        values, classes = all_values(self.values), self.classes.together()
        perplexity = self.tokens.together().perplexity()
        counts = summed(torch.tensor([self.samples, self.batches], dtype=torch.float64))[0].tolist()
        if not counts[1]:
            return Fidelity(why="not measured: the data had no batch left to judge, unlike at first")
        if not values:
            return Fidelity(why="not comparable: the outputs hold no floating numbers that count")
        if not any(one.values for one in values.values()):
            return Fidelity(why="not comparable: the dense model's outputs are not finite")
        shares = [share for one in values.values() if (share := one.explained()) is not None]
        errors = [one.relative() for one in values.values()]
        return Fidelity(
            explained=sum(shares) / len(shares) if shares else None,
            error=sum(errors) / len(errors),
            agreement=classes.same / classes.places if classes.places else None,
            deviation=classes.deviation(),
            divergence=max(classes.divergence / classes.places, 0.0) if classes.places else None,  # rounding goes below
            perplexity=perplexity,
            samples=int(counts[0]),
            batches=int(counts[1]),
        )


def _alike(dense: Any, pruned: Any) -> list[tuple[Tensor, Tensor]] | str:
    """Returns the floating outputs of one batch in pairs, or why they do not compare.

    Where others differ in size, as what is kept for later tokens may, those called ``logits`` are compared alone.
    """
    ours, theirs = _floats(dense), _floats(pruned)
    first, second = named_logits(dense), named_logits(pruned)
    if len(ours) == len(theirs) and all(a.shape == b.shape for a, b in zip(ours, theirs, strict=True)):
        return list(zip(ours, theirs, strict=True))
    if first is not None and second is not None and first.shape == second.shape:
        return [(first, second)]
    if len(ours) != len(theirs):
        return f"not comparable: the dense model gives {len(ours)} outputs, the pruned one {len(theirs)}"
    a, b = next((a, b) for a, b in zip(ours, theirs, strict=True) if a.shape != b.shape)
    return f"not comparable: an output is {list(a.shape)} of the dense model and {list(b.shape)} of the pruned one"


def _floats(outputs: Any) -> list[Tensor]:
    return [x for x in tensors_of(outputs) if x.is_floating_point()]


def _classes_dim(outputs: Any, batch: Batch, *, causal: bool) -> int | None:
    """Returns along which dimension of a model's logits classes lie; None if they are none of the samples, or the targets are values."""
    if all(x.ndim == 0 for x in _floats(outputs)):
        return None
    scores = logits_of(outputs)
    named = named_logits(outputs) is not None or (causal and scores.ndim == 3)
    dim = scores.ndim - 1 if scores.ndim < 4 else 1
    targets = batch.targets
    if (told := classes_dim(outputs, targets, tokens=causal)) is not None:
        dim, named = told, True
    there = (scores.ndim == 2 or (named and scores.ndim > 2)) and len(scores) == batch.size
    valued = isinstance(targets, Tensor) and targets.is_floating_point() and targets.shape == scores.shape
    return dim if there and not valued and scores.numel() and scores.shape[dim] > 1 else None

"""Whether targets are tokens, each to be told from those before it, as a causal language model takes them.

Such a model shifts its labels itself: the scores at a position are for the next token. A captured graph has no labels, so that it
is found out once, from the model's own loss, which the report keeps, or else from the data and from what the outputs depend on.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice, takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from fxprune._base.errors import CalibrationError, FxpruneWarning, outside
from fxprune._base.modes import lent, random_states_kept
from fxprune.data.batch import TARGET_KEYS, Batch
from fxprune.results.attached import report_if_any
from fxprune.scoring.loss import IGNORED, default_loss, logits_of

#: A loss that a model computes in its own precision is the same within this share.
_SAME = 1e-2

#: Outputs that move by less than this share of their size, in the mean, have not moved.
_STILL = 1e-5

#: Among so many batches one is looked for whose targets count.
_AMONG = 32


def next_tokens(targets: Tensor) -> Tensor:
    """Returns targets ``[batch, tokens]``, int64, each where the scores for it are: one place before. The last place does not count."""
    return functional.pad(targets[:, 1:].long(), (0, 1), value=IGNORED)


def causal_loss(outputs: Any, targets: Any) -> Tensor:
    """Returns `default_loss` of scores for the next token, ``[batch, tokens, classes]``, and tokens ``[batch, tokens]``."""
    return default_loss(outputs, next_tokens(targets), tokens=True)


def telling(batches: Iterable[Batch], first: Batch) -> Batch:
    """Returns the first of some batches: of those that have tokens for targets the first in which a next one counts, if it is near."""
    if _tells(first):
        return first
    return next((batch for batch in islice(batches, _AMONG) if _tells(batch)), first)


def own_shift(model: nn.Module, batch: Batch) -> bool | None:
    """Returns whether a model's own loss compares labels with the scores before them; None if it makes no loss, or another one.

    A report knows what was found at first: a graph makes no loss. The labels are those of the call, or else the targets; without
    either they are made up, since it is the model that is asked. A warning says where the loss of the targets is another.
    """
    known = report_if_any(model)
    if known is not None and known.shifts is not None:
        return known.shifts
    batch = _keyed(model, batch)
    takes = inspect.signature(model.forward).parameters
    name = next((key for key in TARGET_KEYS if key in batch.kwargs or key in takes), None)
    labels = None if name is None else _labels(model, batch, name)
    if name is None or labels is None:
        return None
    outputs = _run(model, batch, {name: labels})
    scores = _scores(outputs, labels)
    if scores is None and outputs is not None:  # a loss alone
        scores = _scores(_run(model, _unlabelled(batch)), labels)
    return None if scores is None else _compared(_losses(outputs), scores, labels, told=batch.targets is not None)


def is_causal(model: nn.Module, batch: Batch, shifts: bool | None) -> bool:
    """Returns whether the targets of a batch are tokens, each to be told from those before it.

    Args:
        model: what takes the batch.
        batch: its call and targets.
        shifts: what `own_shift` has found. Where that is nothing, they are if they equal a tensor of the call wherever they count,
            and no output depends on a later token: of an autoencoder they stand in their own places.
    """
    targets = _tokens(batch.targets)
    if targets is None or shifts is not None:
        return bool(targets is not None and shifts)
    batch = _keyed(model, batch)
    leaves = pytree.tree_leaves(_unlabelled(batch).kwargs) + pytree.tree_leaves(batch.args)
    return any(_repeats(leaf, targets) for leaf in leaves) and not _looks_ahead(model, batch, targets)


def _tokens(targets: Any) -> Tensor | None:
    """Returns what can be tokens, ``[batch, tokens]``, as int64; None for anything else."""
    if not isinstance(targets, Tensor) or targets.dim() != 2 or targets.shape[1] < 2 or targets.dtype == torch.bool:
        return None
    return None if targets.is_floating_point() or targets.is_complex() else targets.long()


def told_tokens(batch: Batch, scores: Tensor) -> Tensor | None:
    """Returns the tokens of a batch that scores of the next token are to be held against, None if it has none.

    They are the targets, or else those of the call; what a mask leaves out does not count (`IGNORED`).

    Args:
        batch: the call and its targets.
        scores: ``[batch, tokens, classes]``.
    """
    given = _tokens(batch.targets)
    found = [given] if given is not None else [x for _, leaf in batch.leaves() if (x := _tokens(leaf)) is not None]
    found = [each for each in found if each.shape == scores.shape[:2] and int(each.max()) < scores.shape[2]]
    if not found:
        return None
    tokens = max(found, key=lambda one: int(one.max()))  # not a mask
    mask = _tokens(batch.kwargs.get("attention_mask"))
    masked = given is None and mask is not None and mask.shape == tokens.shape
    return tokens.masked_fill(mask == 0, IGNORED) if masked and mask is not None else tokens


def _tells(batch: Batch) -> bool:
    """Returns whether a next token counts in a batch, or its targets are none."""
    targets = _tokens(batch.targets)
    return targets is None or bool((targets[:, 1:] != IGNORED).any())


def _keyed(model: nn.Module, batch: Batch) -> Batch:
    """Returns a batch whose labels, if the call has them, are given by name."""
    plain = takewhile(lambda p: p.kind is p.POSITIONAL_OR_KEYWORD, inspect.signature(model.forward).parameters.values())
    names = [parameter.name for parameter in plain][: len(batch.args)]
    at = next((names.index(key) for key in TARGET_KEYS if key in names), None)
    if at is None:
        return batch
    named = dict(zip(names[at:], batch.args[at:], strict=False))
    return replace(batch, args=batch.args[:at], kwargs={**named, **batch.kwargs})


def _unlabelled(batch: Batch) -> Batch:
    return replace(batch, kwargs={key: value for key, value in batch.kwargs.items() if key not in TARGET_KEYS})


def _labels(model: nn.Module, batch: Batch, name: str) -> Tensor | None:
    """Returns labels ``[batch, tokens]`` to ask a model about; None if it is none of tokens."""
    given = batch.targets if batch.kwargs.get(name) is None else batch.kwargs[name]
    if given is not None:
        return _tokens(given)
    inputs = [tokens for _, leaf in batch.leaves() if (tokens := _tokens(leaf)) is not None]
    if not inputs:
        return None
    tokens = max(inputs, key=lambda one: int(one.max()))  # not a mask
    scores = _scores(_run(model, _unlabelled(batch)), tokens)
    return None if scores is None else tokens.flip(1) % scores.shape[2]  # any will do that the model can have


def _run(model: nn.Module, batch: Batch, labels: Mapping[str, Tensor] | None = None) -> Any:
    """Returns a model's outputs in evaluation mode; None if it raises, whatever it does with labels that it does not want."""
    call = batch.args, {**batch.kwargs, **(labels or {})}
    try:
        with warnings.catch_warnings(), random_states_kept(), lent(model, call):
            warnings.simplefilter("ignore")
            return model(*call[0], **call[1])
    except Exception:
        return None


def _scores(outputs: Any, labels: Tensor) -> Tensor | None:
    """Returns the logits of tokens, ``[batch, tokens, classes]``, for labels ``[batch, tokens]``: those of the loss, if they fit."""
    leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    try:
        leaves.insert(0, logits_of(outputs))
    except CalibrationError:
        return None
    for leaf in (leaf for leaf in leaves if leaf.dim() == 3):
        if leaf.shape[:2] == labels.shape:
            return leaf
        if (leaf.shape[0], leaf.shape[2]) == labels.shape:
            return leaf.movedim(1, -1)
    return None


def _losses(outputs: Any) -> list[Tensor]:
    """Returns the entry ``loss`` of a model's outputs, or else what they have of single numbers; ``[]`` or ``[1]`` each."""
    named = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    leaves = [named] if isinstance(named, Tensor) else pytree.tree_leaves(outputs)
    numbers = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel() == 1]
    return [leaf for leaf in numbers if math.isfinite(float(leaf))]


def _compared(losses: list[Tensor], scores: Tensor, labels: Tensor, *, told: bool) -> bool | None:
    """Returns whether the first loss that is one of the two is that of the next token; None if none is, or both are.

    Args:
        losses: what the model computes, ``[]`` or ``[1]`` each.
        scores: ``[batch, tokens, classes]``.
        labels: ``[batch, tokens]``.
        told: warn of another one.
    """
    here, ahead = (_value(scores, one) for one in (labels, next_tokens(labels)))
    for loss, rounding in ((float(found), torch.finfo(found.dtype).eps) for found in losses):
        if any(math.isclose(loss, value, rel_tol=_SAME, abs_tol=1e-6) for value in (here, ahead)):
            alike = abs(here - ahead) <= 2 * rounding * abs(loss)
            return None if alike else math.isnan(here) or abs(loss - ahead) < abs(loss - here)
    if losses and told:
        warnings.warn(
            FxpruneWarning(
                f"the model's own loss of these targets is {float(losses[0]):.4g}, and that of its logits {here:.4g} (of the next token "
                f"{ahead:.4g}): what is minimised or differentiated is not what the model computes; pass loss="
            ),
            stacklevel=outside(),
        )
    return None


def _value(scores: Tensor, targets: Tensor) -> float:
    """Returns the loss of scores ``[batch, tokens, classes]``; NaN where a target ``[batch, tokens]`` is none of the classes."""
    try:
        return float(default_loss(scores.float(), targets, tokens=True))
    except CalibrationError:
        return math.nan


def _repeats(leaf: Any, targets: Tensor) -> bool:
    """Returns whether a tensor of the call, ``[batch, tokens]``, holds the targets wherever they count."""
    counted = targets != IGNORED
    return _varies(leaf, targets) and bool(counted.any()) and bool((leaf == targets)[counted].all())


def _varies(leaf: Any, targets: Tensor) -> bool:
    """Returns whether a tensor of the call can be tokens where targets ``[batch, tokens]`` are: all ones are a mask."""
    tokens = _tokens(leaf)
    return tokens is not None and tokens.shape == targets.shape and bool(tokens.min() < tokens.max())


def _looks_ahead(model: nn.Module, batch: Batch, targets: Tensor) -> bool:
    """Returns whether scores of the first half of the tokens move as the second half is changed; targets are ``[batch, tokens]``."""
    half = targets.shape[1] // 2

    def changed(leaf: Any) -> Any:
        if not _varies(leaf, targets):
            return leaf
        low, high = leaf.aminmax()
        return torch.cat([leaf[:, :half], torch.where(leaf == high, low, high)[:, half:]], dim=1)

    args, inputs = pytree.tree_map(changed, (batch.args, _unlabelled(batch).kwargs))
    calls = batch, replace(batch, args=args, kwargs={**batch.kwargs, **inputs})
    found = [_scores(_run(model, call), targets) for call in calls]
    if found[0] is None or found[1] is None:
        return False
    before, after = (scores[:, :half].double() for scores in found if scores is not None)
    return bool((before - after).abs().mean() > _STILL * before.abs().mean())

"""Whether targets are the inputs themselves, each to be told from those before it, as a causal language model takes them.

Such a model shifts its labels itself: the scores at a position are for the next token. A captured graph has no labels, so that it
is found out once, from the model's own loss or else from the data.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxprune._base.errors import CalibrationError, FxpruneWarning, outside
from fxprune._base.modes import lent, random_states_kept
from fxprune.data.batch import TARGET_KEYS, Batch
from fxprune.scoring.loss import IGNORED, default_loss

#: A loss that a model computes in its own precision is the same within this share.
_SAME = 1e-2


def next_tokens(targets: Tensor) -> Tensor:
    """Returns targets ``[batch, tokens]``, int64, each where the scores for it are: one place before. The last place does not count."""
    return functional.pad(targets[:, 1:].long(), (0, 1), value=IGNORED)


def causal_loss(outputs: Any, targets: Any) -> Tensor:
    """Returns `default_loss` of scores for the next token, ``[batch, tokens, classes]``, and tokens ``[batch, tokens]``."""
    return default_loss(outputs, next_tokens(targets), tokens=True)


def is_causal(model: nn.Module, batch: Batch) -> bool:
    """Returns whether the targets of a model are the tokens that it is given, to be told one by one.

    If the forward takes labels and returns a loss, the loss tells. Else they are if they equal a tensor of the call wherever they
    count. A warning says where the model's own loss is neither.
    """
    targets = batch.targets
    if not isinstance(targets, Tensor) or targets.dim() != 2 or targets.is_floating_point() or targets.shape[1] < 2:
        return False
    own = _own_loss(model, batch)
    if own is None:
        return any(_repeats(leaf, targets) for _, leaf in batch.leaves())
    loss, outputs = own
    here, ahead = (_value(outputs, one) for one in (targets, next_tokens(targets)))
    if not any(math.isclose(loss, value, rel_tol=_SAME, abs_tol=1e-6) for value in (here, ahead)):
        warnings.warn(
            FxpruneWarning(
                f"the model's own loss of these targets is {loss:.4g}, and that of its logits {here:.4g} (of the next token {ahead:.4g}): "
                "what is minimised or differentiated is not what the model computes; pass loss="
            ),
            stacklevel=outside(),
        )
        return any(_repeats(leaf, targets) for _, leaf in batch.leaves())
    return abs(loss - ahead) < abs(loss - here)


def _own_loss(model: nn.Module, batch: Batch) -> tuple[float, Any] | None:
    """Returns the loss that a model computes of the targets in evaluation mode, and its outputs; None if it computes none."""
    takes = inspect.signature(model.forward).parameters
    name = next((key for key in TARGET_KEYS if key in takes and key not in batch.kwargs), None)
    if name is None:
        return None
    call = batch.args, {**batch.kwargs, name: batch.targets}
    try:
        with random_states_kept(), lent(model, call):
            outputs = model(*call[0], **call[1])
    except Exception:  # whatever a model does with labels that it does not want
        return None
    found = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    if not isinstance(found, Tensor) or found.numel() != 1 or not math.isfinite(float(found)):
        return None
    return float(found), outputs


def _value(outputs: Any, targets: Tensor) -> float:
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", outputs)
    try:
        return float(default_loss(logits, targets))
    except CalibrationError:  # targets of another shape
        return math.nan


def _repeats(leaf: Any, targets: Tensor) -> bool:
    """Returns whether a tensor of the call, ``[batch, tokens]``, holds the targets wherever they count."""
    if (
        not isinstance(leaf, Tensor)
        or leaf.is_floating_point()
        or leaf.shape != targets.shape
        or leaf.dtype == torch.bool
    ):
        return False
    counted = targets != IGNORED
    return bool(counted.any()) and bool((leaf == targets)[counted].all())

"""`fxprune.compile`: the options spelled out for the editor, and the way through the stages, in memory or over files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, Literal

import torch
from torch import nn
from torch.export import ExportedProgram

from fxprune._base.defaults import MEMORY_LIMIT
from fxprune._base.modes import plain_modes, random_states_kept
from fxprune.budget.budget import Budget
from fxprune.compiler.options import (
    AUTO,
    Allocation,
    Basis,
    Form,
    MethodName,
    Options,
    RecoveryOption,
    UnitKind,
    spelled_out,
)
from fxprune.recovery.protocol import Recovery
from fxprune.rewriting.pruned import PrunedModule
from fxprune.scoring.loss import Loss
from fxprune.scoring.scorer import Scorer
from fxprune.streaming.streamed import streamed
from fxprune.streaming.together import together


@spelled_out
@random_states_kept()
@plain_modes()
def compile(  # noqa: D417  # the options are described as `Options` has them
    model: nn.Module | ExportedProgram,
    calib_data: Any,
    budget: float | Budget | None = None,
    *,
    method: MethodName | str | Scorer = "variance",
    ratios: float | Mapping[str, float] | None = None,
    allocation: Allocation = "curves",
    basis: Basis | None = None,
    units: UnitKind | Sequence[UnitKind] = ("channel", "expert", "head", "head_dim", "kv_group"),
    ignore: str | Sequence[str] = (),
    round_to: int | Literal["auto", "measure"] = AUTO,
    min_keep: int | Literal["auto"] = AUTO,
    recover: RecoveryOption | str | Recovery | None = AUTO,
    ridge: float | Literal["auto"] = AUTO,
    holdout: float = 0.1,
    allow_bias: bool = False,
    loss: Loss | None = None,
    form: Form = "graph",
    also: Sequence[Callable[..., Any]] = (),
    uniform: bool = False,
    forward_args: Callable[[Any], Any] | None = None,
    dynamic_shapes: Any = None,
    steps: int = 1,
    strict: bool = False,
    verify: bool = True,
    verify_dtype: torch.dtype | None = None,
    memory_limit: int = MEMORY_LIMIT,
    cache_dir: str | PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = True,
    alone: bool = False,
    weights: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
) -> PrunedModule:
    """Returns a smaller model that computes what the original computes without the removed channels.

    It is a `PrunedModule`, i.e. a `torch.fx.GraphModule`, with ``report``, ``plan`` and ``certificate``. Where the model cannot
    be captured whole (a detector), it is a copy of the model, with the same three, in which the largest parts that can be
    captured are each a `PrunedModule`; the budget is theirs.

    Args:
        model: any module that ``torch.export`` can capture, or an exported program; it is left bit-identical. On the
            meta device it is planned without weights, by a method that needs none, with ``recover=None`` and
            ``verify=False``. One that is sharded over processes (``fully_shard``) is gathered: all of them must ask, and each holds the
            whole result.
        calib_data: batches, gone through several times: a DataLoader, a list, a tensor. A batch is a tensor,
            ``(inputs, targets)`` or a dict of keyword arguments.
        budget: the share of parameters to keep, in (0, 1], or a `Budget`, which may bound a measured latency; None with
            ``ratios``.
        (options)

    Raises:
        CaptureError: the model cannot be captured; names module and line.
        CalibrationError: the data or the weights are unusable.
        BudgetError: the budget is malformed or out of reach; says the smallest that can be reached.
        NothingToPruneError: no channel may go.
        ScorerError: an unknown method or unusable scores.
        RotationError: under ``basis``, no channels can be given in another one; names what stands in the way.
        RecoveryError: an unknown recovery, or one that returned something unusable.
        TypeError, ValueError: another argument is malformed, or does not go with ``weights`` or several processes.
        PlanError: ``weights`` are no files of tensors, or ``out`` holds something else.
        FxpruneError: several processes do not compile the same, or one of them failed; or a file of ``out`` cannot be written.
        UnsupportedOpError: under ``strict``, an op without a rule.
        VerificationError: the result differs from its masked twin, a bug of fxprune; or it is not finite where the
            original is. A wrong model is never returned.
    """
    options = Options.of(locals())
    if weights is not None or out is not None:
        return streamed(model, calib_data, budget, options)
    return together(model, calib_data, budget, options)

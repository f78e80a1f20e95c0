"""From files to files: a model that need not fit into memory, compiled as any other, over tensors that are mapped.

The stages are those of any compilation. Weights are read where a layer runs; what recovery makes, and what is left of each tensor,
lies in a file as soon as it is made, and is mapped from there.
"""

from __future__ import annotations

import re
from dataclasses import replace
from os import fspath
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from fxprune._base.errors import RecoveryError, ScorerError
from fxprune._base.pages import paged
from fxprune._base.ranks import world_size
from fxprune._base.shelf import Shelf
from fxprune.budget.budget import as_budget
from fxprune.compiler.judging import Judge
from fxprune.compiler.options import MODULE, Options
from fxprune.compiler.pipeline import from_captured
from fxprune.compiler.stages import capture, prepare, through
from fxprune.compiler.state import State
from fxprune.data.digest import digest_of, digest_of_batches, digest_of_file, told
from fxprune.recovery.protocol import recovery_of
from fxprune.rewriting.pruned import PrunedModule
from fxprune.scoring.scorer import registered, scorer_of
from fxprune.storage.artifact import save_with
from fxprune.storage.files import found_files
from fxprune.storage.manifest import check_target
from fxprune.streaming.judging import marched
from fxprune.streaming.weights import filled
from fxprune.streaming.work import SCORES, Remembered, working

#: The recoveries that go layer by layer.
_RECOVERIES = ("mean_shift", "covariance", "sequential")

#: What a criterion may read of a model that passes by.
_PASSING = {"weights", "activations"}

#: Options that change scores.
_SCORING = (
    "method",
    "units",
    "ignore",
    "min_keep",
    "forward_args",
    "dynamic_shapes",
    "strict",
    "memory_limit",
    "seed",
    "loss",
)

#: Options that change nothing of the result.
_BESIDE = {"progress", "cache_dir", "out"}


def streamed(model: Any, calib_data: Any, budget: Any, options: Options) -> PrunedModule:
    """Returns the smaller model, mapped from the directory that it is written to.

    Args:
        model: on the meta device.
        calib_data: as `fxprune.compile` takes it.
        budget: as `fxprune.compile` takes it.
        options: with ``weights`` and ``out``.

    Raises:
        ValueError, TypeError, ScorerError, RecoveryError: an option that needs the model as a whole; says what to use instead.
        CalibrationError, PlanError: the files do not hold this model, or the directory holds something else.
    """
    _check(model, budget, options)
    assert options.weights is not None and options.out is not None
    target = Path(options.out).resolve()
    check_target(options.out)
    with paged(options.memory_limit // 2):
        whole = filled(model, options.weights)
        state = through(prepare(whole, calib_data, budget, _exact(options, whole)), capture)
        with working(target, *_keys(state, budget, options)) as work:
            scorer = Remembered(state.scorer, work.shelf(SCORES))
            state = replace(state, shelves=work.shelf, scorer=scorer)
            judge = Judge(state, compared=None if state.captured is None else marched)
            state = judge(from_captured(state))
            result = work.shelf("model")
            if options.form == MODULE:  # names of its own, and tensors that are not the graph's
                result = _shelved(state.pruned, work.shelf(MODULE))
            save_with(state.pruned, target, result.files)
    return cast("PrunedModule", state.pruned)


def _shelved(model: nn.Module, shelf: Shelf) -> Shelf:
    """Writes the tensors of a model in its own class to files, some at a time, and has them lie there."""
    seen = set[int]()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen and name in shelf:
            tensor.data = shelf[name]
        elif id(tensor) not in seen:
            shelf.take(name, tensor)
        seen.add(id(tensor))
    shelf.flush()
    return shelf


def _check(model: Any, budget: Any, options: Options) -> None:
    """Makes sure, before anything is read, that all that is asked for can be done layer by layer."""
    if world_size() > 1 and not options.alone:
        raise ValueError(
            "weights=: several processes cannot write one result yet: call it in one of them, with alone=True"
        )
    if not isinstance(model, nn.Module):
        raise TypeError(f"weights=: expected a torch.nn.Module on the meta device, got {type(model).__name__}")
    if options.out is None:
        raise ValueError("weights=: what is read from files is written to files: give out= with it, a directory")
    if options.weights is None:
        raise ValueError(
            "out=: give weights= with it, the files of a model on the meta device; of one in memory, fxprune.save(pruned, directory)"
        )
    scorer = scorer_of(options.method)
    if beyond := [need for need in scorer.needs if need not in _PASSING]:
        others = [name for name, make in sorted(registered().items()) if set(make().needs) <= _PASSING]
        raise ScorerError(
            f"method {scorer.name!r} needs {' and '.join(beyond)}, for which all of the model has to be in memory: with weights= use one of "
            f"{', '.join(others)}"
        )
    recovery = recovery_of(options.resolve(scorer).recover)
    if recovery is not None and recovery.name not in _RECOVERIES:
        raise RecoveryError(
            f"recover={recovery.name!r} needs all of the model in memory: with weights= use one of {', '.join(_RECOVERIES)} or None"
        )
    plain = Options()
    for name in ("basis", "steps", "allow_bias", "round_to"):
        given = getattr(options, name)
        if given != getattr(plain, name) and not (name == "round_to" and isinstance(given, int)):
            raise ValueError(f"{name}={given!r} needs all of the model in memory: leave it out with weights=")
    if budget is not None and as_budget(budget).bounds_latency:
        raise ValueError("a bound on the latency needs all of the model in memory: bound params or macs with weights=")


def _exact(options: Options, model: nn.Module) -> Options:
    """Returns the options with a precision for the comparison, where the model's own is half: it tells no fault from rounding."""
    half = any(tensor.is_floating_point() and tensor.dtype.itemsize < 4 for tensor in model.parameters())
    return replace(options, verify_dtype=torch.float32) if half and options.verify_dtype is None else options


def _keys(state: State, budget: Any, options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what the scores depend on: criterion, files, model and data; and what the rest does besides."""
    assert options.weights is not None
    given = {name: value for name, value in told(options).items() if name not in _BESIDE}
    own = {name: given.pop(name) for name in _SCORING}
    files = [[fspath(path.resolve()), digest_of_file(path)] for path in found_files(options.weights)]
    module, captured = state.module, state.captured
    model = {
        "class": [type(module).__module__, type(module).__qualname__, re.sub(r"0x[0-9a-f]+", "", repr(module))],
        "graph": "" if captured is None else captured.module.code,
        "shapes": {name: list(tensor.shape) for name, tensor in module.state_dict().items()},
        "buffers": digest_of(buffer for _, buffer in module.named_buffers()),
        "constants": "" if captured is None else digest_of(b for _, b in captured.module.named_buffers()),
    }
    data = digest_of_batches(state.batches)
    return {"options": own, "files": files, "model": model, "data": data}, {"options": given, "budget": told(budget)}

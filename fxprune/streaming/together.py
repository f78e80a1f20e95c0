"""In memory, by one process or by all of a group: each takes a share of the work, and all hold the same result."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, cast

from torch import nn

from fxprune._base.ranks import check_same, shared, world
from fxprune._base.sharded import holds_shards
from fxprune.capturing.source import unwrapped
from fxprune.compiler.options import MEASURE, Options
from fxprune.compiler.pipeline import run
from fxprune.compiler.stages import prepare
from fxprune.compiler.state import State
from fxprune.data.digest import digest_of, digest_of_batches, told
from fxprune.results.attached import report
from fxprune.rewriting.pruned import PrunedModule

#: Options that change nothing of the result.
_BESIDE = {"progress", "cache_dir"}


def together(model: Any, calib_data: Any, budget: Any, options: Options) -> PrunedModule:
    """Returns the smaller model, the same in every process.

    Raises:
        FxpruneError: not all processes came, they hold different models or data, or one of them failed; says which.
        ValueError: this one is to compile alone, and others hold parts of its model.
    """
    if options.alone and isinstance(model, nn.Module) and holds_shards(unwrapped(model)):
        raise ValueError(
            "alone=True: several processes hold the model (fully_shard), and gather it together: leave alone out in all of them"
        )
    with nullcontext() if options.alone is True else shared():
        state = prepare(model, calib_data, budget, options)
        if world() > 1:
            _check_measures_nothing(state)
            _check_alike(state, budget, options)
        pruned = run(state).pruned
        if world() > 1:
            plan = report(pruned).plan
            check_same({"the plan": None if plan is None else digest_of([plan.to_json()])})
    return cast("PrunedModule", pruned)


def _check_measures_nothing(state: State) -> None:
    """Makes sure that nothing is measured, which differs from process to process.

    Raises:
        ValueError: something is; says what.
    """
    for name, asked in (
        ("a bound on the latency", state.budget is not None and state.budget.bounds_latency),
        ("round_to='measure'", state.options.round_to == MEASURE),
    ):
        if asked:
            raise ValueError(
                f"{name} is measured, and several processes measure different things: leave it out, or give alone=True in one of them"
            )


def _check_alike(state: State, budget: Any, options: Options) -> None:
    """Makes sure that all processes work on the same thing, in the same way.

    Raises:
        FxpruneError: they do not; says what differs.
    """
    named = list(state.module.named_parameters())
    check_same(
        {
            **{f"the option {name}": value for name, value in told(options).items() if name not in _BESIDE},
            "the budget": told(budget),
            "the model": [name for name, _ in named],
            "the model's weights": digest_of(parameter for _, parameter in named),
            "the model's buffers (statistics are each process's own in DDP: hand round those of one)": digest_of(
                buffer for _, buffer in state.module.named_buffers()
            ),
            "the calibration data (each process is given all of it, not a share)": digest_of_batches(state.batches),
        }
    )

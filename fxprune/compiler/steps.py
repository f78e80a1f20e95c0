"""Iterative compilation: score, prune a little, recover, and score what is left again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fxprune._base.names import fetch
from fxprune.algebra.channels import Mask
from fxprune.budget.budget import Budget
from fxprune.budget.cost import Cost
from fxprune.coupling.coupling import Coupling
from fxprune.reporting.record import report
from fxprune.rewriting.plan import Kept, Plan
from fxprune.rewriting.slicing import keep_indices


def in_steps(
    once: Callable[[nn.Module, Budget], nn.Module],
    model: nn.Module,
    budget: Budget,
    before: Cost,
    steps: int,
    dense_ms: float | None = None,
) -> tuple[nn.Module, Plan]:
    """Returns the model pruned in several compilations, each on what the one before left, and the plan of them all.

    After step i of n a bound stands at ``full * share^(i / n)``: every step removes the same share of what is there.

    Args:
        once: compiles a model to an absolute budget.
        model: the original.
        budget: of the last step.
        before: the cost of the original.
        steps: how many.
        dense_ms: the latency of the original, where the budget bounds it.
    """
    current: nn.Module = model
    plans: list[Plan] = []
    for number in range(1, steps + 1):
        pruned = once(current, schedule(budget, before, number / steps, dense_ms))
        plan = report(pruned).plan
        assert plan is not None
        plans.append(plan)
        current = pruned
    return pruned, combined(plans)


def schedule(budget: Budget, before: Cost, progress: float, dense_ms: float | None = None) -> Budget:
    """Returns the absolute bounds at a point of the way, 0 at the start and 1 at the end; the last is exact."""
    limits = {
        "params": (budget.limits(before).get(0), before.params),
        "macs": (budget.limits(before).get(1), before.macs),
    }
    counts = {
        name: limit if progress >= 1 else max(limit, math.floor(full * (limit / full) ** progress))
        for name, (limit, full) in limits.items()
        if limit is not None
    }
    here = replace(budget, params=counts.get("params"), macs=counts.get("macs"))
    if dense_ms is None:
        return here
    last = budget.latency_ms or (budget.latency or 1.0) * dense_ms
    ms = max(last, dense_ms * (last / dense_ms) ** progress) if progress < 1 else last
    return replace(here, latency=None, latency_ms=ms)


def combined(plans: Sequence[Plan]) -> Plan:
    """Returns one plan that does what several do one after another."""
    first, last = plans[0], plans[-1]
    keep: Kept = first.keep
    for plan in plans[1:]:
        keep = _after(keep, plan.keep, first.shapes)
    collapsed = tuple(dict.fromkeys(layer for plan in plans for layer in plan.collapsed))
    return replace(
        last, keep=keep, shapes=first.shapes, before=first.before, collapsed=collapsed, example=first.example
    )


def _after(keep: Kept, then: Kept, shapes: Mapping[str, tuple[int, ...]]) -> Kept:
    result = {name: dict(axes) for name, axes in keep.items()}
    for name, axes in then.items():
        for axis, kept in axes.items():
            held = result.setdefault(name, {}).get(axis, tuple(range(shapes[name][axis])))
            result[name][axis] = tuple(held[index] for index in kept)
    return result


def at_full_size(coupling: Coupling, removed: Mask, pruned: nn.Module) -> dict[str, Tensor]:
    """Returns a pruned model's parameters and buffers at their places in tensors of the original's size."""
    values = pruned.state_dict()
    kept = keep_indices(coupling, removed)
    found = {}
    for node in coupling.values:
        name = str(node.target)
        if node.op == "get_attr" and name in values:
            whole = fetch(coupling.captured.module, name).detach().clone()
            index = [torch.arange(size) for size in whole.shape]
            for axis, positions in kept.get(name, {}).items():
                index[axis] = torch.from_numpy(positions)
            whole[torch.meshgrid(*index, indexing="ij")] = values[name]
            found[name] = whole
    return found

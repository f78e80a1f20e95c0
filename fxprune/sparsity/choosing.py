"""Which units are held at zero at a point of the way: those that a budget in between, and a criterion, would have go."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from fxprune._base.modes import plain_modes, random_states_kept
from fxprune._base.names import fetch
from fxprune._base.sharded import whole
from fxprune.algebra.channels import Mask
from fxprune.budget.budget import Budget
from fxprune.budget.cost import Cost
from fxprune.budget.scope import counted_by
from fxprune.compiler.allocation import allocate
from fxprune.compiler.solving import solved
from fxprune.compiler.stages import score
from fxprune.compiler.state import State
from fxprune.coupling.selection import Selection
from fxprune.coupling.unit_scores import STAYS

#: What the scores of units that are meant to go are multiplied by: they rank below all others, and among each other as before.
_BELOW = 1e-9


def between(budget: Budget, whole: Cost, share: float) -> Budget:
    """Returns the budget at a share of the way from the whole model, in counts; the last is the budget's own."""
    full = {0: whole.params, 1: whole.macs}
    limits = {i: math.floor(full[i] - (full[i] - limit) * min(share, 1.0)) for i, limit in budget.limits(whole).items()}
    return replace(budget, params=limits.get(0), macs=limits.get(1))


def whole_cost(state: State) -> Cost:
    """Returns what the model costs, as the budget counts it."""
    return counted_by(state.coupling, state.budget).of(Selection.nothing(state.coupling).removed)


@random_states_kept()
@plain_modes()
def chosen(state: State, share: float, *, gone: Tensor, going: Tensor | None, stay: Collection[str]) -> Mask:
    """Returns the channels that go at a share of the way, ``[channels]`` flags, those that are gone among them.

    Args:
        state: of a coupled model, its graph's tensors as they are to be judged.
        share: of the way, 1 at the budget.
        gone: flags of the units that are held at zero already, ``[units]``.
        going: flags of those that are to go before others, ``[units]``.
        stay: names of groups that keep all.

    Raises:
        BudgetError: the budget is out of reach.
        ScorerError: the criterion's scores are unusable.
    """
    assert state.budget is not None
    budget = between(state.budget, whole_cost(state), share)
    state = allocate(score(state))
    scores = _ranked(state, gone.cpu(), None if going is None else going.cpu(), stay)
    _, solution = solved(replace(state, scores=scores, budget=budget))
    before: Mask = state.coupling.removed_mask(gone.cpu().nonzero().flatten().tolist())
    return solution.removed | before


def _ranked(state: State, gone: Tensor, going: Tensor | None, stay: Collection[str]) -> dict[str, Tensor]:
    """Returns the scores of each group, ``[units]`` each, in which what is gone is last, and what is to go before that."""
    every: Mapping[str, Tensor] = {
        name: torch.as_tensor(one).detach().cpu().double() for name, one in state.scores.items()
    }
    finite = [one for one in every.values() if len(one) and bool((one != STAYS).all())]
    low, high = (float(torch.cat(finite).min()), float(torch.cat(finite).max())) if finite else (0.0, 0.0)
    found = {}
    for group in state.coupling.groups:
        one = every[group.name].clone()
        if group.name in stay or bool((one == STAYS).all()):
            found[group.name] = torch.full_like(one, STAYS)
            continue
        units = torch.from_numpy(group.units)
        if going is not None:
            one = torch.where(going[units], (one - low) * _BELOW, one - low + _BELOW)
        one[gone[units]] = min(low, 0.0) - 1e6 * (1 + high - low)
        found[group.name] = one
    return found


def refreshed(state: State, model: nn.Module) -> None:
    """Has the graph's tensors be the live model's, where these are no longer the same ones: sharded, replaced, computed."""
    module = state.coupling.captured.module
    names = dict.fromkeys(str(node.target) for node in module.graph.find_nodes(op="get_attr"))
    for name in names:
        try:
            own, live = fetch(module, name), fetch(model, name)
        except AttributeError:  # a constant of the graph
            continue
        if isinstance(own, Tensor) and isinstance(live, Tensor) and live is not own:
            own.detach().copy_(whole(live))

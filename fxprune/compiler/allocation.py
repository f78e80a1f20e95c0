"""Allocation: how the scores of different groups compare, and so how a budget is shared out among them.

``"curves"`` takes the criterion's scores as they are: what a unit costs when its turn comes. ``"uniform"`` takes the same share of
every group. ``"search"`` measures: each group alone is pruned and recovered at two points, and what that does to the outputs scales
the group's curve. The whole is then judged on a batch that recovery has not seen, beside the other two, and the curves are
measured again where they have come to stand, since they add up only nearly; the best one counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxprune.algebra.channels import Mask
from fxprune.budget.constraints import free_groups
from fxprune.compiler.solving import solved
from fxprune.compiler.state import State
from fxprune.compiler.trials import Trials
from fxprune.coupling.unit_scores import STAYS
from fxprune.coupling.units import Group
from fxprune.results.tables import few
from fxprune.scoring.joint import hull

#: The shares of a group at which it is measured.
_POINTS = (0.25, 0.5)
#: How often the whole is solved for: by curves as they are measured first, and then where it has come to stand.
_ROUNDS = 3
#: A measured curve is a power of the criterion's own, between these.
_POWERS = (0.5, 3.0)
_TINY = 1e-12


def allocate(state: State) -> State:
    """Gives the state scores that share out its budget as the options say."""
    how = state.options.allocation
    if how == "uniform":
        return replace(state, scores=uniform(state.scores, _free(state)), per_cost=False)
    return searched(state) if how == "search" else state


def uniform(scores: Mapping[str, Tensor], groups: Sequence[Group]) -> dict[str, Tensor]:
    """Returns scores, ``[units]`` each, of which some groups' are each unit's place in its group's order, as a share of the group."""
    return {**scores, **{group.name: _places(scores[group.name]) for group in groups}}


def _places(score: Tensor) -> Tensor:
    places = torch.empty(len(score), dtype=torch.float64)
    places[_listed(score).argsort(stable=True)] = torch.arange(1, len(score) + 1, dtype=torch.float64) / len(score)
    return places


def _free(state: State) -> list[Group]:
    """Returns the groups that the criterion lets lose units."""
    return [
        group
        for group in free_groups(state.coupling, state.constraints)
        if not (_listed(state.scores[group.name]) == STAYS).all()
    ]


@dataclass(frozen=True, slots=True, eq=False)
class _Curve:
    """What removing so many units of a group, in order, does to the outputs.

    Attributes:
        order: the units, lowest score first.
        own: the criterion's curve: the sum of so many lowest scores, as a share of all, ``[units]``.
        points: how many units went when it was measured, and what that did.
    """

    order: list[int]
    own: Tensor
    points: tuple[tuple[int, float], ...] = ()

    def scores(self) -> Tensor:
        """Returns the scores of the units, ``[units]``: slopes of the lower hull of the curve through the points."""
        (first, low), (last, high) = self.points[-2:] if len(self.points) > 1 else self.points * 2
        power = 1.0
        if last != first:
            run = math.log(float(self.own[last - 1]) / float(self.own[first - 1]))
            power = math.log(high / low) / run if run > _TINY else 1.0
        curve = high * (self.own / self.own[last - 1]) ** min(max(power, _POWERS[0]), _POWERS[1])
        return hull(self.order, curve.diff(prepend=curve.new_zeros(1)).tolist())


def searched(state: State) -> State:
    """Returns the state with the scores of whichever allocation leaves the outputs closest to the dense ones.

    Raises:
        ValueError: the recovery draws all weights anew, the model has no values, or the budget bounds a latency.
    """
    if state.recovery is not None and state.recovery.anew:
        raise ValueError(
            f"allocation='search' judges by outputs, which recover={state.recovery.name!r} does not keep: expected "
            "allocation='curves' or 'uniform' with it"
        )
    if any(x.is_meta for x in (*state.module.parameters(), *state.module.buffers())):
        raise ValueError(
            "allocation='search' runs the model, which is on the meta device: expected 'curves' or 'uniform'"
        )
    if state.search is not None:
        raise ValueError(
            "allocation='search' judges many models, and a latency is measured of each: expected a budget of params or macs"
        )
    trials = Trials(state.coupling, state.inputs, state.options.damping, state.options.memory_limit)
    groups = _free(state)
    curves = {group.name: _measured(trials, state, group, _curve(state.scores[group.name])) for group in groups}
    tried = [("curves", state), ("uniform", replace(state, scores=uniform(state.scores, groups), per_cost=False))]
    results = [(trials.loss(_removed(one)), name, one) for name, one in tried]
    removed: Mask | None = None
    for _ in range(_ROUNDS):
        if removed is not None:
            curves = {group.name: _again(trials, state, group, curves[group.name], removed) for group in groups}
        scores = {**state.scores, **{name: curve.scores() for name, curve in curves.items()}}
        one = replace(state, scores=scores, per_cost=True)
        removed = _removed(one)
        results.append((trials.loss(removed), "search", one))
    loss, name, best = min(results, key=lambda result: result[0])
    others = {other: min(value for value, found, _ in results if found == other) for other in ("curves", "uniform")}
    beside = ", ".join(f"{value:.4g} by {other!r}" for other, value in others.items() if other != name)
    note = f"allocation: recovered by covariance, {name!r} leaves the outputs of {trials.where} {loss:.4g} from the dense ones, {beside}"
    left = f"allocation: no memory to recover {few(trials.left, 3)}: what they read looks dearer than it is"
    return replace(best, notes=(*best.notes, note, *([left] if trials.left else [])))


def _removed(state: State) -> Mask:
    return solved(state)[1].removed


def _listed(score: Any) -> Tensor:
    """Returns scores as a criterion may give them, ``[units]``, as numbers to work with."""
    return torch.as_tensor(score).detach().cpu().double()


def _curve(given: Any) -> _Curve:
    score = _listed(given)
    order = score.argsort(stable=True)
    rising = score[order].clamp_min(0) + _TINY * max(float(score.clamp_min(0).sum()), _TINY)
    return _Curve(order.tolist(), rising.cumsum(0) / rising.sum())


def _measured(trials: Trials, state: State, group: Group, curve: _Curve) -> _Curve:
    """Returns a curve measured at its points."""
    counts = sorted({max(int(len(group.units) * share), 1) for share in _POINTS})
    return replace(curve, points=tuple((count, _without(trials, state, group, curve, count)) for count in counts))


def _again(trials: Trials, state: State, group: Group, curve: _Curve, removed: Mask) -> _Curve:
    """Returns a curve measured as well at as many units as have gone."""
    count = int(removed[state.coupling.units[group.units]].sum())
    if not count or any(count == known for known, _ in curve.points):
        return curve
    points = (*curve.points, (count, _without(trials, state, group, curve, count)))
    nearest = sorted(points, key=lambda point: abs(point[0] - count))[:2]
    return replace(curve, points=tuple(sorted(nearest)))


def _without(trials: Trials, state: State, group: Group, curve: _Curve, count: int) -> float:
    """Returns what the outputs lose without a group's lowest units."""
    units = group.units[np.array(curve.order[:count])]
    return max(trials.loss(state.coupling.removed_mask(units)), _TINY)

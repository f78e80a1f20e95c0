"""One network through the compiler, stage by stage, and what came of it."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune._base.errors import BudgetError, NothingToPruneError
from fxprune.budget.budget import Budget
from fxprune.budget.constraints import Constraints
from fxprune.budget.depth import may_vanish
from fxprune.budget.solver import Solution, solve
from fxprune.capturing.captured import Captured, capture
from fxprune.compiler.by_hand import verify
from fxprune.coupling.blocks import with_blocks
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.interpreter import couple
from fxprune.coupling.selection import Selection
from fxprune.rewriting.emission import emit
from fxprune.rewriting.slicing import keep_indices, slice_graph
from fxprune.twin.interpreter import Run
from tests.models.networks import KINDS, Network, expected_units, networks
from tests.support.weights import fingerprint, randomise

BATCH, OTHER_BATCH = 3, 5


@dataclass(frozen=True)
class Pruning:
    """What is asked of the compiler: a budget or a ratio, constraints, and the seed of weights and scores.

    ``dead``: what goes is zero for every input before, where there is such a setting.
    """

    budget: float | None = None
    ratio: float | None = 0.5
    macs: bool = False
    min_keep: int = 1
    round_to: int = 1
    ignore: bool = False
    blocks: bool = False
    dead: bool = False
    seed: int = 0

    def constraints(self, ignore: tuple[str, ...] = ()) -> Constraints:
        """Returns what must stay, ``ignore`` included."""
        kinds = Constraints().kinds + (("block",) if self.blocks else ())
        return Constraints(kinds, ignore, self.round_to, self.min_keep)


@dataclass(frozen=True)
class Case:
    """A network and how to prune it; its repr runs again."""

    network: Network
    pruning: Pruning = field(default_factory=Pruning)


@dataclass
class Outcome:
    """What came of a case.

    Attributes:
        status: verified, degenerate (no proof: an output says nothing), nothing (no channel may go),
            wrong (result or promise broken), crash.
        detail: what went wrong, and where.
        units: units found, and removed.
        removed: units removed.
        missing: layer -> (units found, units expected) of layers that offer too few.
        params: before and after.
        detected: whether a deliberately wrong plan was found out; None if none could be made.
    """

    status: str
    detail: str = ""
    units: int = 0
    removed: int = 0
    missing: dict[str, tuple[int, int]] = field(default_factory=dict)
    params: tuple[int, int] = (0, 0)
    detected: bool | None = None


class WrongError(Exception):
    """The compiler broke a promise."""


def cases(most: int = 4, kinds: tuple[str, ...] = KINDS) -> st.SearchStrategy[Case]:
    """Returns a strategy for cases."""
    share = st.sampled_from((0.5, 0.3, 0.7, 0.15, 0.9))
    common = {
        "min_keep": st.sampled_from((1, 1, 0, 2)),
        "round_to": st.sampled_from((1, 1, 1, 2, 4)),
        "ignore": st.sampled_from((False, False, True)),
        "blocks": st.sampled_from((False, False, True)),
        "dead": st.sampled_from((False, False, False, True)),
        "seed": st.integers(0, 9999),
    }
    by_budget = st.builds(Pruning, budget=share, ratio=st.none(), macs=st.booleans(), **common)
    by_ratio = st.builds(Pruning, ratio=st.sampled_from((0.5, 0.3, 0.8, 1.0)), **common)
    return st.builds(Case, networks(most, kinds), st.one_of(by_budget, by_ratio))


def run(case: Case, *, mutate: bool = False) -> Outcome:
    """Returns what comes of a case; no exception but an interrupt leaves."""
    outcome = Outcome("crash")
    try:
        _run(case, outcome, mutate)
    except WrongError as error:
        outcome.status, outcome.detail = "wrong", str(error)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        last = next((f for f in reversed(frames) if "fxprune" in f.filename), frames[-1])
        outcome.detail = f"{type(error).__name__}: {error} (at {last.name}, line {last.lineno} of {last.filename})"
    return outcome


def _run(case: Case, outcome: Outcome, mutate: bool) -> None:
    network, pruning = case.network, case.pruning
    torch.manual_seed(pruning.seed)
    model = network.build()
    batch = network.example(BATCH, pruning.seed)
    randomise(model, pruning.seed, network.example(8, pruning.seed + 1))
    before = fingerprint(model)
    captured = capture(model, batch)
    coupling = _coupled(captured, pruning)
    for size in (BATCH, OTHER_BATCH):
        given = network.example(size, pruning.seed + size)
        _same(
            _leaves(model(*given)),
            Run(Selection.nothing(coupling))(captured.call.flatten(given, {})),
            "the captured graph",
        )
    outcome.units = len(coupling.units)
    outcome.missing = missing(coupling, expected_units(model))
    try:
        solution = solution_of(coupling, pruning)
    except NothingToPruneError:
        outcome.status = "nothing"
        return
    outcome.removed, outcome.params = len(solution.units), (solution.before.params, solution.after.params)
    sliced = slice_graph(Selection(coupling, solution.removed))
    pruned = emit(captured, sliced)
    promises(model, pruned, solution)
    proofs = []
    for size in (BATCH, OTHER_BATCH):
        given = network.example(size, pruning.seed + size)
        certificate = verify(coupling, solution.removed, pruned, (given, {}), tolerance=1e-9)
        if certificate.verified is False:
            raise WrongError(f"batch {size}: error {certificate.max_error:.1e}, {certificate.note}")
        proofs.append(certificate.verified)
    if fingerprint(model) != before:
        raise WrongError("the user's model has changed")
    outcome.status = "verified" if all(proofs) else "degenerate"
    if mutate and all(proofs):
        outcome.detected = wrong_plan_detected(coupling, solution, sliced, (batch, {}))


def compiled(model: nn.Module, batch: tuple[Tensor, ...], pruning: Pruning) -> tuple[Coupling, Solution, nn.Module]:
    """Returns coupling, solution and emitted module of a model, random scores given."""
    captured = capture(model, batch)
    coupling = _coupled(captured, pruning)
    solution = solution_of(coupling, pruning)
    return coupling, solution, emit(captured, slice_graph(Selection(coupling, solution.removed)))


def _coupled(captured: Captured, pruning: Pruning) -> Coupling:
    coupling = couple(captured)
    return with_blocks(coupling) if pruning.blocks else coupling


def _leaves(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _same(expected: Sequence[Tensor], got: Sequence[Any], what: str) -> None:
    for a, b in zip(expected, got, strict=True):
        if a.shape != b.shape or not torch.allclose(a, b, rtol=1e-9, atol=1e-11, equal_nan=True):
            raise WrongError(f"{what} does not compute what the model computes")


def missing(coupling: Coupling, expected: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Returns the layers whose output axis offers fewer units than it must."""
    found = {}
    axes = {(a.tensor, a.dim): a for a in coupling.axes}
    for layer, count in expected.items():
        axis = axes.get((f"{layer}.weight", 0))
        units = len(np.unique(axis.labels[axis.labels > 0])) if axis is not None else 0
        if units < count:
            found[layer] = (units, count)
    return found


def solution_of(coupling: Coupling, pruning: Pruning) -> Solution:
    """Returns what the solver makes of random scores; a budget out of reach is answered by a ratio.

    Raises:
        NothingToPruneError: no channel may go.
        WrongError: the budget is exceeded.
    """
    generator = torch.Generator().manual_seed(pruning.seed)
    scores = {g.name: torch.rand(len(g.units), generator=generator) for g in coupling.groups}
    ignore = ()
    if pruning.ignore and coupling.groups:
        ignore = (coupling.groups[pruning.seed % len(coupling.groups)].name,)
    constraints = pruning.constraints(ignore)
    common: dict[str, Any] = {
        "constraints": constraints,
        "vanishing": may_vanish(coupling, constraints),
        "per_cost": bool(pruning.seed % 2),
    }
    if pruning.budget is None:
        return solve(coupling, scores, ratios=pruning.ratio, **common)
    budget = Budget(macs=pruning.budget) if pruning.macs else Budget(params=pruning.budget)
    try:
        solution = solve(coupling, scores, budget, **common)
    except BudgetError:
        return solve(coupling, scores, ratios=0.5, **common)
    if any(solution.after[i] > limit for i, limit in budget.limits(solution.before).items()):
        raise WrongError(f"{budget} exceeded: {solution.after} of {solution.before}")
    return solution


def promises(model: nn.Module, pruned: nn.Module, solution: Solution) -> None:
    """Raises WrongError unless parameters are as counted and every name is the original's."""
    counted = sum(p.numel() for p in pruned.parameters())
    if counted != solution.after.params:
        raise WrongError(f"the emitted module has {counted} parameters, the solver counts {solution.after.params}")
    if unknown := set(pruned.state_dict()) - set(model.state_dict()):
        raise WrongError(f"names that the original does not have: {sorted(unknown)}")


def wrong_plan_detected(
    coupling: Coupling, solution: Solution, sliced: fx.GraphModule, batch: tuple[tuple[Any, ...], dict[str, Any]]
) -> bool | None:
    """Shifts one kept index of one weight axis, and returns whether verification finds it out; None if there is none."""
    for name, axes in keep_indices(Selection(coupling, solution.removed)).items():
        original = (
            coupling.captured.module.get_parameter(name)
            if name in dict(coupling.captured.module.named_parameters())
            else None
        )
        for dim, kept in axes.items():
            if original is None or original.dim() < 2:
                continue
            gone = sorted(set(range(original.shape[dim])) - set(kept.tolist()))
            place = next(((i, g) for i, k in enumerate(kept.tolist()) for g in gone if abs(k - g) == 1), None)
            if place is None:
                continue
            wrong = kept.copy()
            wrong[place[0]] = place[1]
            value = original.detach().index_select(dim, torch.from_numpy(wrong))
            for other, index in axes.items():
                if other != dim:
                    value = value.index_select(other, torch.from_numpy(index))
            holder = sliced.get_submodule(name.rpartition(".")[0])
            right = getattr(holder, name.rpartition(".")[2])
            setattr(holder, name.rpartition(".")[2], nn.Parameter(value))
            certificate = verify(coupling, solution.removed, emit(coupling.captured, sliced), batch, tolerance=1e-9)
            setattr(holder, name.rpartition(".")[2], right)
            return certificate.verified is False
    return None

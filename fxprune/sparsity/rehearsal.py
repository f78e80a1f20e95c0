"""Which units can be removed exactly once all their weights are zero: tried on the graph before any training is spent on them.

With zeros wherever a unit lies, nothing that sums over it sees it, whatever an activation makes of zero: what reads it is zero as
well. But what looks at channels in another way may count it: a softmax over the experts of a mixture gives one with zeros its share.
A layer norm counts zeros in its mean and variance, and so does the norm that is written out in its place once they are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from fxprune._base.errors import NothingToPruneError
from fxprune._base.modes import plain_modes, random_states_kept
from fxprune._base.names import fetch
from fxprune.algebra.channels import Ids, Mask
from fxprune.budget.constraints import Constraints, free_groups
from fxprune.budget.solver import solve
from fxprune.compiler.options import MODULE
from fxprune.compiler.state import State
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.interpreter import couple, couple_counted
from fxprune.coupling.selection import Selection
from fxprune.coupling.unit_scores import STAYS
from fxprune.coupling.units import Group
from fxprune.data.calls import Call
from fxprune.results.certificate import Certificate
from fxprune.rewriting.planning import nowhere
from fxprune.rewriting.slicing import keep_indices
from fxprune.sparsity.layout import Layout, clear, flags_of
from fxprune.twin.comparison import compare
from fxprune.twin.interpreter import Run

Keep = Mapping[str, Mapping[int, Ids]]

#: What is added to each parameter while units are tried, as a share of how far it varies: a bias of zeros would hide a fault.
_NOISE = 0.1


def exact(selection: Selection, call: Call) -> Certificate:
    """Returns how the dense model, as its weights are, compares with its masked twin in float64: what removal changes."""
    flat = selection.coupling.captured.call.flatten(*call)
    with torch.no_grad():
        dense = Run(Selection.nothing(selection.coupling), torch.float64)(flat)
        twin = Run(selection, torch.float64)(flat)
    return compare(dense, twin)


def found_again(coupling: Coupling, keep: Keep) -> Selection | None:
    """Returns the selection that leaves these coordinates of each tensor's axes, ``[kept]`` each; None if they do not go together."""

    def kept(tensor: str, dim: int, size: int) -> Mask:
        every = np.arange(size)
        return np.isin(every, keep.get(tensor, {}).get(dim, every))

    removed = nowhere(coupling, lambda axis: kept(axis.tensor, axis.dim, len(axis.labels)))
    selection = Selection(coupling, removed)
    return selection if _same(keep_indices(selection), keep) else None


def _same(a: Keep, b: Keep) -> bool:
    def plain(keep: Keep) -> dict[str, dict[int, list[int]]]:
        return {name: {dim: index.tolist() for dim, index in axes.items()} for name, axes in keep.items()}

    return plain(a) == plain(b)


@random_states_kept()
@plain_modes()
def inexact(state: State, layout: Layout) -> tuple[str, ...]:
    """Returns the names of the groups whose units zeros do not remove, or not provably.

    Args:
        state: of a coupled model, whose parameters have other values for a while.
        layout: of its units.
    """
    coupling, call = state.coupling, (state.first.args, state.first.kwargs)
    computed = set(coupling.captured.folded)
    free, found = list[Group](), list[str]()
    for group in free_groups(coupling, state.constraints):
        made = any(coupling.axes[index].tensor in computed for index, _ in group.axes)
        (found.append(group.name) if made else free.append(group))

    def right(groups: Sequence[Group]) -> bool:
        removed = _half(coupling, groups, state.constraints)
        if removed is None:
            return True
        with _zeros(coupling.captured.module, layout, flags_of(coupling.units_of(removed), layout)):
            # of a class, norms stay the layers that they are
            again = (couple_counted if state.options.form == MODULE else couple)(coupling.captured)
            selection = found_again(again, keep_indices(Selection(coupling, removed)))
            return selection is not None and exact(selection, call).verified is not False

    return (*found, *_wrong(free, right))


def _wrong(groups: Sequence[Group], right: Callable[[Sequence[Group]], bool]) -> Iterator[str]:
    """Yields the names of the groups that are not right, halving those that are not right together."""
    if not groups or right(groups):
        return
    if len(groups) == 1:
        yield groups[0].name
        return
    middle = len(groups) // 2
    yield from _wrong(groups[:middle], right)
    yield from _wrong(groups[middle:], right)


def _half(coupling: Coupling, groups: Sequence[Group], constraints: Constraints) -> Mask | None:
    """Flags half of the units of some groups, ``[channels]``, as far as they may go; None if none may."""
    names = {group.name for group in groups}
    draw = torch.Generator().manual_seed(0)
    scores = {
        group.name: torch.rand(len(group.units), generator=draw, dtype=torch.float64)
        if group.name in names
        else torch.full((len(group.units),), STAYS, dtype=torch.float64)
        for group in coupling.groups
    }
    try:
        removed = solve(coupling, scores, ratios=0.5, constraints=constraints).removed
    except NothingToPruneError:
        return None
    return removed if removed.any() else None


@contextmanager
def _zeros(module: nn.Module, layout: Layout, gone: Tensor) -> Iterator[None]:
    """Has parameters vary, and the flagged units, ``[units]``, be zero; afterwards all values are as they were."""
    names = dict.fromkeys(place.tensor for place in layout.places)
    tensors = {name: fetch(module, name) for name in (*names, *dict(module.named_parameters()))}
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    draw = torch.Generator().manual_seed(1)
    try:
        with torch.no_grad():
            for tensor in tensors.values():
                if tensor.is_floating_point():
                    noise = torch.randn(tensor.shape, generator=draw).to(tensor)
                    spread = float(tensor.float().std()) if tensor.numel() > 1 else 0.0
                    tensor.add_(noise * (_NOISE * (spread or 1.0)))
            clear(module, layout.cuts(gone))
        yield
    finally:
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(before[name])

"""Regularisers of units, as steps of their own after the optimiser's: what is to go is small by the time that it goes.

Each step is proximal: it moves the weights to the minimum of the penalty and the squared distance from where they are. So an
optimiser's momentum and adaptive rates have no part in it, and a weight that is to be zero is zero.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, fx, nn

from fxprune._base.names import fetch
from fxprune.coupling.coupling import Coupling
from fxprune.ops.registry import bind, is_kind
from fxprune.sparsity import shards
from fxprune.sparsity.layout import Layout

Sparsity = Literal["group_lasso", "growing", "bn_scale"]

#: The strengths unless others are given, at a learning rate of one: some thousand steps at usual rates make small units zero.
STRENGTHS = {"group_lasso": 5e-3, "growing": 1.0, "bn_scale": 1e-2}

#: The learning rate of a step of which none is said.
USUAL_RATE = 0.01


def group_lasso(layout: Layout, model: nn.Module, free: Tensor, amount: float) -> None:
    """Takes ``amount`` off the root mean square of each free unit's weights, ``[units]`` flags; a unit with less becomes zero.

    The penalty is the sum over units of ``sqrt(n) |w|`` with n weights w on a unit, whatever parameters they are in (Yuan & Lin 2006).
    """
    size = layout.norms(model) / layout.weights.clamp_min(1).sqrt()
    factors = (1 - amount / size.clamp_min(torch.finfo(size.dtype).tiny)).clamp_min(0)
    layout.scale(model, torch.where(free, factors, 1.0))


def growing(layout: Layout, model: nn.Module, going: Tensor, amount: float) -> None:
    """Divides the weights of the units that are to go, ``[units]`` flags, by ``1 + amount``: an L2 penalty.

    The caller raises the amount step by step (Wang et al. 2021, arXiv 2012.09243, section 3.2).
    """
    layout.scale(model, torch.where(going, 1 / (1 + amount), 1.0).to(layout.weights))


def bn_scale(layout: Layout, model: nn.Module, free: Tensor, scales: tuple[str, ...], amount: float) -> None:
    """Takes ``amount`` off the size of batch norms' scales that lie on free units, ``[units]`` flags.

    It is an L1 penalty (network slimming: Liu et al. 2017, arXiv 1708.06519, Eq. 1).
    """
    flags = torch.cat([free, free.new_zeros(1)])
    for place in layout.places:
        if place.tensor in scales:
            shards.shrink(fetch(model, place.tensor), flags[place.units].any(dim=1), amount)


def scales_of(coupling: Coupling) -> tuple[str, ...]:
    """Returns the names of the batch norms' scales."""
    norms = [node for node in coupling.captured.module.graph.nodes if is_kind(node, "batch_norm")]
    weights = [bind(node).weight for node in norms]
    return tuple(str(w.target) for w in weights if isinstance(w, fx.Node) and w.op == "get_attr")

"""Torch-Pruning takes ratios, not budgets: the ratio that comes nearest to a share of the MACs."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from torch import Tensor, nn

from common.audit import macs

STEPS = 8


def within_macs(
    prune: Callable[[float], nn.Module], model: nn.Module, x: Tensor, share: float, steps: int = STEPS
) -> nn.Module:
    """Returns the largest network that bisection finds within a share of the model's MACs.

    Args:
        prune: makes the network of a ratio; a larger one leaves less.
        model: the dense network.
        x: one call of it.
        share: of its MACs, at most.
        steps: of the bisection.

    Raises:
        RuntimeError: no ratio reaches it.
    """
    base, low, high, best = macs(model, x), 0.0, 0.95, None
    for _ in range(steps):
        ratio = (low + high) / 2
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = prune(ratio)
        if macs(trial, x) <= share * base:
            best, high = trial, ratio
        else:
            low = ratio
    if best is None:
        raise RuntimeError(f"no ratio reaches {share} of the MACs")
    return best

"""Independent checks of a compiled model: is anything restorable, and what was removed.

They start from the plan (kept indices of each parameter axis) and from ``torch``, not from the solver's own record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from . import zoo

Keep = Mapping[str, Mapping[int, Sequence[int]]]


def removed_channels(coupling: Any, keep: Keep) -> np.ndarray:
    """Returns a flag for each channel id: set if every coordinate that carries it is gone."""
    seen = np.zeros(len(coupling.channels), bool)
    alive = np.zeros(len(coupling.channels), bool)
    for axis in coupling.axes:
        kept = np.ones(len(axis.labels), bool)
        if axis.dim in keep.get(axis.tensor, {}):
            kept[:] = False
            kept[np.asarray(keep[axis.tensor][axis.dim], dtype=np.int64)] = True
        seen[axis.labels.ravel()] = True
        alive[axis.labels[kept].ravel()] = True
    flags: np.ndarray = seen & ~alive
    flags[0] = False
    return flags


def units_removed(coupling: Any, removed: np.ndarray) -> dict[str, int]:
    """Returns the number of removed units of each kind."""
    found: Counter[str] = Counter()
    for group in coupling.groups:
        found[group.kind] += int(removed[coupling.units[group.units]].sum())
    return {kind: count for kind, count in found.items() if count}


def restorable(coupling: Any, model: Any, removed: np.ndarray, limits: Mapping[int, int]) -> list[str]:
    """Returns the groups of which one more unit would have fitted the limits (index into the cost: bound).

    Units of one group have the same footprint, so the first removed one of each speaks for all.
    """
    found = []
    for group in coupling.groups:
        gone = [unit for unit in coupling.units[group.units] if removed[unit]]
        for unit in gone[:1]:
            flags = removed.copy()
            flags[unit] = False
            cost = model.of(flags)
            if all(cost[index] <= bound for index, bound in limits.items()):
                found.append(group.name)
    return found


def params(model: nn.Module) -> int:
    """Returns the number of parameters, tied ones once."""
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def macs(model: nn.Module, batch: zoo.Batch) -> int:
    """Returns multiply-accumulates per sample as ``torch.utils.flop_counter`` counts them on a real forward pass."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it is one op, and not counted
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            zoo.call(model, batch)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    count = len(next(iter(batch.values())) if isinstance(batch, dict) else batch)
    total = counter.get_total_flops()
    return total // 2 // count

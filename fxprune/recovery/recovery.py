"""Recover: new values for what is kept, so that it makes up for what goes. Weights stay at full size here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from fxprune.algebra.channels import Mask
from fxprune.coupling.coupling import Coupling
from fxprune.recovery.compensate import compensate
from fxprune.recovery.consumers import find_consumers
from fxprune.recovery.reconstruct import reconstruct
from fxprune.recovery.sequential import sequential

__all__ = ["METHODS", "Recovery", "check_recovery", "recover"]

METHODS = ("mean_shift", "covariance", "sequential", "reconstruct")


@dataclass(frozen=True, slots=True, eq=False)
class Recovery:
    """What recovery changed.

    Attributes:
        tensors: full-size replacements of parameters and buffers, by name; removed coordinates do not matter.
        skipped: what was left alone, and why.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()


def check_recovery(method: Any, ridge: Any, memory_limit: Any) -> None:
    """Makes sure that the arguments of `recover` can be used.

    Raises:
        ValueError: no such method, or a ridge or limit that is not positive.
    """
    if method is not None and method not in (*METHODS, "reinit"):
        raise ValueError(f"recover must be one of {', '.join(METHODS)}, reinit or None, got {method!r}")
    if not isinstance(ridge, Real) or not float(ridge) > 0:
        raise ValueError(f"ridge must be a positive share of the mean variance, such as 1e-2, got {ridge!r}")
    if not isinstance(memory_limit, int) or memory_limit <= 0:
        raise ValueError(f"memory_limit must be a positive number of bytes, got {memory_limit!r}")


@torch.no_grad()
def recover(
    coupling: Coupling, removed: Mask, inputs: Iterable[Sequence[Tensor]], method: str | None, *,
    ridge: float = 1e-2, memory_limit: int = 2 << 30,
) -> Recovery:  # fmt: skip
    """Compensates every linear layer and convolution that reads a removed channel.

    Args:
        coupling: of the captured graph.
        removed: a flag for each channel id.
        inputs: the graph's flat inputs, batch by batch.
        method: ``"mean_shift"`` (VBP), ``"covariance"`` (statistics of the dense model), ``"sequential"`` (regression on
            what the pruned model feeds, with residual drift), ``"reconstruct"`` (that, and then every block learns to give
            the dense model's values, by gradient and without labels); None, and ``"reinit"``, which `fxprune.compile` does once
            the layers have their sizes (see `fxprune.recovery.reinit`), change nothing here.
        ridge: damping, as a share of the mean diagonal of the layer's covariance.
        memory_limit: bytes for statistics and values that are alive.

    Raises:
        ValueError: no such method, or a ridge or limit that is not positive.
    """
    check_recovery(method, ridge, memory_limit)
    if method in (None, "reinit") or not removed.any():  # "reinit" waits until layers have their sizes
        return Recovery()
    consumers, notes = find_consumers(coupling, removed)
    notes += [f"{c.weight}: no bias or batch norm takes its shift" for c in consumers if c.home is None]
    if method in ("sequential", "reconstruct"):
        tensors = sequential(coupling, removed, consumers, inputs, ridge=ridge, memory_limit=memory_limit)
        if method == "reconstruct":
            tensors = reconstruct(coupling, removed, consumers, inputs, tensors)
    else:
        covariance = method == "covariance"
        tensors = compensate(coupling, consumers, inputs, covariance=covariance, ridge=ridge, memory_limit=memory_limit)
    return Recovery(tensors, tuple(notes))

"""The comparison: outputs against outputs, each by itself, and each channel by how far it varies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fxprune.results.certificate import Certificate

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}

#: Differences of so many units in the last place of an output's largest value are rounding, whatever the tolerance.
ROUNDING = 16


@dataclass(frozen=True, slots=True)
class Found:
    """How one output compares.

    Attributes:
        error: its largest difference as a share of how far it, or the channel, varies.
        doubt: why it proves nothing; empty if it does.
        rounding: whether a difference may be rounding, or a fault: more precision would tell.
    """

    error: float
    doubt: str = ""
    rounding: bool = False


def compare(expected: Sequence[Any], got: Sequence[Any], tolerance: float | None = None) -> Certificate:
    """Returns whether flat outputs, ``[...]`` each, agree (see `Certificate`)."""
    dtypes = [a.dtype for a in expected if isinstance(a, Tensor) and a.is_floating_point()]
    dtype = dtypes[0] if dtypes else torch.float32
    limit = tolerance if tolerance is not None else TOLERANCE.get(dtype, 1e-4)
    failed = partial(Certificate, False, float("inf"), limit, str(dtype))
    if len(expected) != len(got):
        return failed(f"{len(expected)} outputs expected, {len(got)} came")
    compared: dict[int, Found] = {}
    for index, (a, b) in enumerate(zip(expected, got, strict=True)):
        if isinstance(a, float) and isinstance(b, float):
            a, b = (torch.tensor(value, dtype=dtype) for value in (a, b))
        if not isinstance(a, Tensor):
            if isinstance(b, Tensor) or a != b:
                return failed(f"output {index} is another value")
            continue
        if not isinstance(b, Tensor) or (a.shape, a.dtype) != (b.shape, b.dtype):
            return failed(f"output {index} has another shape or dtype")
        found = _real(a, b, limit) if a.is_floating_point() or a.is_complex() else _whole(a, b)
        if found is None:
            return failed(f"output {index} differs in a whole number")
        if found.error > limit:
            return Certificate(False, found.error, limit, str(dtype), f"output {index} differs")
        compared[index] = found
    every = compared.values()
    proven = any(not found.doubt for found in every) and not any(found.rounding for found in every)
    doubts = [f"output {index} {found.doubt}" for index, found in compared.items() if found.doubt]
    note = "" if proven else "; ".join(doubts) or "there is no output"
    shapes = {i: list(expected[i].shape) if isinstance(expected[i], Tensor) else "a number" for i in compared}
    lines = (f"output {i} {shapes[i]}{found.doubt and ': '}{found.doubt}" for i, found in compared.items())
    worst = max((found.error for found in every), default=0.0)
    return Certificate(True if proven else None, worst, limit, str(dtype), note, tuple(lines))


def _whole(a: Tensor, b: Tensor) -> Found | None:
    """Compares whole numbers and flags, which must be equal; None where they are not."""
    if not torch.equal(a, b):
        return None
    return Found(0.0, "" if a.dim() and bool((a != a[:1]).any()) else "is constant over the batch")


def _real(a: Tensor, b: Tensor, limit: float) -> Found:
    """Compares floating and complex numbers; NaN counts as infinitely wrong."""
    if a.is_complex():
        a, b = (torch.view_as_real(x.resolve_conj()) for x in (a, b))
    if not a.numel():
        return Found(0.0, "is empty")
    if not torch.isfinite(a).all():
        return _alike(a, b, limit, "is not finite")
    deviation = (a - (a.mean(dim=0, keepdim=True) if a.dim() and len(a) > 1 else a.mean())).abs()
    if float(deviation.max()) <= min(1e3 * torch.finfo(a.dtype).eps, 1e-2) * float(a.abs().max()):
        return _alike(a, b, limit, "is constant over the batch")
    difference = (a - b).abs()
    if not torch.isfinite(difference).all():
        return Found(float("inf"))
    worst, rounding = _error(torch.zeros((), device=a.device), deviation.max(), difference.max(), a, limit)
    for dim in {1, a.dim() - 1} - {0, -1} if a.dim() > 1 else ():  # channels, or features of tokens
        size, spread, apart = (_by_channel(values, dim) for values in (a.abs(), deviation, difference))
        error, doubtful = _error(size, spread, apart, a, limit)
        worst, rounding = max(worst, error), rounding or doubtful
    return Found(worst, "varies by little more than rounding" if rounding else "", rounding)


def _by_channel(values: Tensor, dim: int) -> Tensor:
    return values.amax(dim=[d for d in range(values.dim()) if d != dim])


def _error(size: Tensor, spread: Tensor, difference: Tensor, a: Tensor, limit: float) -> tuple[float, bool]:
    """Returns the largest difference as a share of the spread, and whether some may be rounding.

    A difference within rounding of a channel's own ``size`` is none. Within rounding of the whole output, from whose parts a
    small channel may come, it is a doubt; so it is in low precision, as far as the noise of a deep network may reach.
    """
    precision = ROUNDING * torch.finfo(a.dtype).eps
    error = torch.where(difference <= precision * size, 0.0, difference / spread)
    beyond = error > limit
    if not beyond.any():
        return float(error.max()), False
    rounding = difference <= precision * a.abs().max()
    if a.dtype is not torch.float64:
        rounding |= error <= limit**0.5
    if rounding[beyond].all():
        return 0.0, True
    return float(error[beyond & ~rounding].max()), False


def _alike(a: Tensor, b: Tensor, limit: float, doubt: str) -> Found:
    """Compares what does not vary: values that agree prove little, others are wrong."""
    finite = a[torch.isfinite(a)]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    alike = torch.allclose(a, b, rtol=limit, atol=limit * scale, equal_nan=True)
    return Found(0.0 if alike else float("inf"), doubt)

"""Modules that do something only while training, told by what they do: stochastic depth, whoever wrote it.

An evaluation-mode graph keeps them as they are (see `fxprune.capturing.marks`); their classes are anybody's, and a file must not
name those. One that drops whole samples, or the whole batch, with a probability is stored as `StochasticDepth`.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

_SAMPLES, _DRAWS = 64, 64


class StochasticDepth(nn.Module):
    """Drops samples (or the whole batch) while training, and leaves its input as it is otherwise.

    Args:
        p: the probability that a sample is dropped.
        batch: whether all samples are dropped together.
        scale: whether what is kept is divided by ``1 - p``.
    """

    def __init__(self, p: float, batch: bool = False, scale: bool = True) -> None:
        super().__init__()
        self.p = p
        self.batch = batch
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``x`` ``[N, ...]``, samples of it zero while training."""
        if not self.training or self.p == 0:
            return x
        kept = 1 - self.p
        noise = x.new_empty([1 if self.batch else x.shape[0]] + [1] * (x.dim() - 1)).bernoulli_(kept)
        if self.scale and kept > 0:
            noise = noise.div_(kept)
        return x * noise

    def extra_repr(self) -> str:
        """Returns the options."""
        return f"p={self.p}, batch={self.batch}, scale={self.scale}"


class Lost(nn.Module):
    """Stands where a module was that does something unknown while training; leaves its input as it is always.

    Args:
        what: the class that was there.
    """

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``x``, ``[...]``."""
        return x

    def extra_repr(self) -> str:
        """Returns what was there."""
        return self.what


def recognise(module: nn.Module) -> nn.Module | None:
    """Returns a module of ours that does what ``module`` does, or `Lost`; None if it is not silent in evaluation mode.

    It is tried out on random numbers, in a copy; the generators of random numbers are put back.
    """
    if module._modules or module._parameters or module._buffers:
        return None
    probe = copy.deepcopy(module).cpu()
    with _same_randomness(), torch.no_grad():
        x = torch.rand(_SAMPLES, 2, 2, 2) + 1
        if not _hands_back(probe.eval(), x):
            return None
        probe.train()
        for name, value in vars(module).items():
            if not isinstance(value, bool) and isinstance(value, (int, float)) and 0 <= value <= 1:
                found = _depth(probe, name, x)
                if found is not None:
                    return StochasticDepth(float(value), *found)
        if all(_is_identity(probe, x) for _ in range(_DRAWS)):
            return nn.Identity()
    return Lost(f"{type(module).__module__}.{type(module).__qualname__}")


def _depth(probe: nn.Module, name: str, x: Tensor) -> tuple[bool, bool] | None:
    """Returns (batch, scale) if the attribute is the probability of stochastic depth, tried at 0.1 and at 0.9."""
    old = getattr(probe, name)
    try:
        tried = [_drops(probe, name, p, x) for p in (0.1, 0.9)]
    finally:
        setattr(probe, name, old)
    return tried[0] if tried[0] == tried[1] else None


def _drops(probe: nn.Module, name: str, p: float, x: Tensor) -> tuple[bool, bool] | None:
    """Returns (batch, scale) if the samples that one factor does not keep are zero, and as many as expected."""
    setattr(probe, name, p)
    try:
        factors = torch.stack([probe(x) / x for _ in range(_DRAWS)]).flatten(2)  # draws, samples, values
    except Exception:  # an attribute that is something else
        return None
    rows = factors.mean(2)
    if not torch.allclose(factors, rows[..., None].expand_as(factors), atol=1e-5):
        return None
    dropped = rows.abs() < 1e-5
    for scale in (True, False):
        kept = 1 / (1 - p) if scale else 1.0
        if torch.allclose(rows[~dropped], torch.tensor(kept), atol=1e-4):
            batch = bool((dropped.all(1) | ~dropped.any(1)).all())
            share, draws = dropped.float().mean().item(), _DRAWS if batch else dropped.numel()
            tolerance = 5 * (p * (1 - p) / draws) ** 0.5  # five standard errors
            return (batch, scale) if 0 < share < 1 and abs(share - p) < tolerance else None
    return None


def _hands_back(probe: nn.Module, x: Tensor) -> bool:
    """Returns whether the module returns the very tensor that it is given, untouched: what capture calls silent."""
    version = x._version
    try:
        return probe(x) is x and x._version == version
    except Exception:  # whatever a module raises that takes something else
        return False


def _is_identity(probe: nn.Module, x: Tensor) -> bool:
    try:
        return torch.equal(probe(x), x)
    except Exception:  # it takes something else while training
        return False


@contextmanager
def _same_randomness() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch's own function seeds every device
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)

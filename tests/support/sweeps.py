"""A sweep with everything in it, made once."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

import fxprune
from fxprune import Budget
from fxprune.reporting.pareto import Sweep
from tests.models.small import Residual, image


def model() -> nn.Module:
    torch.manual_seed(0)
    return Residual().double().eval()


DATA = [image(8, seed=seed)[0] for seed in (1, 2)]


@cache
def small_sweep() -> Sweep:
    """Returns a sweep with everything in it."""
    return fxprune.sweep(
        model(), DATA, [0.7, Budget(macs=0.5), 0.005], ["l1", "random"], evaluate=quality, latency=True, progress=False
    )


@torch.no_grad()
def quality(module: nn.Module) -> float:
    return -float((module(DATA[0]) - model()(DATA[0])).square().mean())

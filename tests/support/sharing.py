"""What each of several processes does that compile together; run by `tests.support.processes.spawned`."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

import fxprune
from tests.support.processes import Told


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 24),
        nn.LayerNorm(24),
        nn.ReLU(),
        nn.Linear(24, 5),
    ).eval()


def batches() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [(torch.randn(n, 3, 8, 8, generator=draw), torch.arange(n) % 5) for n in (6, 4, 5, 3, 6)]


#: Ways to compile whose results several processes must agree on.
WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "sequential": {"recover": "sequential"},
    "mean shift": {"recover": "mean_shift"},
    "taylor": {"method": "taylor"},
    "spvr": {"method": "spvr", "recover": None},
    "kl": {"method": "kl"},
    "obs": {"method": "obs", "allocation": "search"},
    "weights": {"method": "l2", "recover": None},
    "many": {"recover": "covariance", "memory_limit": 60_000},
    "hrank": {"method": "hrank", "recover": "reconstruct"},
}


def compiled(way: str) -> dict[str, Any]:
    """Returns what comes of a way: plan, tensors and how often the network ran."""
    pruned = fxprune.compile(network(), batches(), 0.6, progress=False, holdout=0.4, **WAYS[way])
    assert pruned.plan is not None
    return {
        "plan": pruned.plan.to_json(),
        "weights": {name: tensor.clone() for name, tensor in pruned.state_dict().items()},
        "verified": pruned.report.verified,
        "fidelity": pruned.report.fidelity,
    }


def together(rank: int) -> dict[str, Any]:
    """Returns what each way gives."""
    return {way: compiled(way) for way in WAYS}


def failing(rank: int) -> dict[str, Any]:
    """Returns what each process is told, and after how long, where one of them fails or does not come."""
    told = Told()

    def attempt(name: str, model: nn.Module, data: Any, **options: Any) -> None:
        told.attempt(name, lambda: fxprune.compile(model, data, 0.6, progress=False, **options))

    def fails(outputs: Tensor, targets: Tensor) -> Tensor:
        if rank == 1:
            raise RuntimeError("out of luck")
        return outputs.sum()

    later = batches()
    later[3] = (later[3][0] + rank, later[3][1])
    attempt("other data", network(), later)
    other = network()
    with torch.no_grad():
        other[7].weight.copy_(other[7].weight.flip(0) if rank else other[7].weight)
    attempt("other weights", other, batches())
    other = network()
    other[1].running_mean.add_(rank)
    attempt("other statistics", other, batches())
    attempt("other ridge", network(), batches(), ridge=1e-2 * (rank + 1))
    attempt("other method", network(), batches(), method=("l2", "variance")[rank])
    with torch.device("meta"):
        bare = network()
    attempt("meta", bare, [x.to("meta") for x, _ in batches()], method="random", recover=None, verify=False)
    attempt("measured", network(), batches(), round_to="measure")
    if rank == 0:
        alone = fxprune.compile(network(), batches(), 0.6, progress=False, alone=True)
        told.found["alone"] = alone.report.verified
    dist.barrier()
    attempt("one fails", network(), batches(), method="taylor", loss=fails)
    return told.found


def disappearing(rank: int) -> dict[str, Any]:
    """One process ends in the middle of its work."""

    def gone(outputs: Tensor, targets: Tensor) -> Tensor:
        if rank == 1:
            os._exit(3)
        return outputs.sum()

    fxprune.compile(network(), batches(), 0.6, method="taylor", loss=gone, progress=False)
    return {}

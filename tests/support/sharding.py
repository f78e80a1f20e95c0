"""What each of two processes does with a model that both hold a part of; run by `tests.support.processes.spawned`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import fxprune
from fxprune.data.checks import check_plain
from tests.support.processes import PROCESSES, Told
from tests.support.schedules import attending, tokens
from tests.support.sharing import network

OPTIONS: dict[str, Any] = {"progress": False, "holdout": 0}


def with_all(seen: list[int]) -> nn.Module:
    """Returns a model with what a copy must keep: a tied weight, a frozen one, a buffer, a hook of the user's, training mode in one."""
    model = attending()
    model.k.weight = model.q.weight
    model.embed.requires_grad_(False)
    model.register_buffer("steps", torch.tensor(7))
    model.up.register_forward_hook(lambda module, given, result: seen.append(1))
    model.norm3.train()
    return model.eval()


def fully(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shards a model, two of its layers by themselves, one inside of what is sharded."""
    fully_shard(model.up, mesh=mesh)
    fully_shard(model.out, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def some(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shards one layer of a model."""
    fully_shard(model.down, mesh=mesh)
    return model


def tensor_parallel(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shares the two layers of an MLP out by their hidden units."""
    return parallelize_module(model, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


#: Ways to shard, and the form of what is made of it.
WAYS = {"fully": (fully, "module"), "some": (some, "graph"), "tensor parallel": (tensor_parallel, "graph")}


def compiled(model: nn.Module, form: str) -> Any:
    return fxprune.compile(model, [tokens()[0]], 0.6, form=form, **OPTIONS)


def sharded(rank: int) -> dict[str, Any]:
    """Returns for each way of sharding what comes of it in both forms, and what it is beside the original's."""
    mesh, found, x = init_device_mesh("cpu", (PROCESSES,)), dict[str, Any](), tokens()[0]
    every = {form: compiled(with_all([]), form) for form in ("graph", "module")}
    for way, (shard, form) in WAYS.items():
        seen: list[int] = []
        model = shard(with_all(seen), mesh)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model(x)  # whatever it leaves gathered
        pruned, wanted = compiled(model, form), every[form]
        seen.clear()
        pruned(x)
        found[way] = {
            "class": type(pruned).__mro__[form == "graph" :] == type(wanted).__mro__[form == "graph" :],
            "plan": pruned.plan.to_json() == wanted.plan.to_json(),
            "alike": _alike(pruned, wanted),
            "plain": not any(isinstance(tensor, DTensor) for tensor in pruned.state_dict().values()),
            "frozen": [name for name, p in pruned.named_parameters() if not p.requires_grad],
            "hooks": len(seen),
            "again": _again(pruned, mesh, x),
            "stays": all(torch.equal(_whole(before[name]), _whole(now)) for name, now in model.state_dict().items()),
            "sharded": isinstance(model.down.weight, DTensor),
            "runs": float((_whole(model(x)) - with_all([])(x)).abs().max()),
        }
    return found


def _alike(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], rtol=1e-9, atol=1e-12) for name in a)


def _again(pruned: nn.Module, mesh: DeviceMesh, x: Tensor) -> float:
    """Returns how far a result is from itself once it is sharded again, and trained on for a step."""
    with torch.no_grad():
        wanted = pruned(x)
    fully_shard(pruned, mesh=mesh)
    result = pruned(x)
    result.square().mean().backward()
    return float((result - wanted).detach().abs().max())


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def others(rank: int) -> dict[str, Any]:
    """Returns what else becomes of a sharded model: a sweep, a schedule, a rotation, batch norms, and what is refused."""
    mesh, x = init_device_mesh("cpu", (PROCESSES,)), tokens()[0]
    told, images = Told(), torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    told.attempt("alone", lambda: fxprune.compile(fully(attending(), mesh), [x], 0.6, alone=True, **OPTIONS))
    told.attempt("plain", lambda: check_plain(fully(attending(), mesh)))
    points = fxprune.sweep(fully(attending(), mesh), [x], budgets=[0.8, 0.6], methods=["l2"], progress=False).points
    convolutional = fully_shard(network(), mesh=mesh)
    pruned = fxprune.compile(torch.compile(convolutional), images, 0.6, **OPTIONS)  # type: ignore[arg-type]
    schedule = fxprune.Schedule(fully(attending(), mesh), [x], 0.7, steps=1)
    schedule.step()
    plan = compiled(fully_shard(attending(), mesh=mesh), "graph").plan
    graph = fully_shard(fxprune.apply(fully(attending(), mesh), plan), mesh=mesh)
    graph(x)
    return {
        **told.found,
        "graph": compiled(graph, "graph").report.verified,
        "points": [point.report is not None for point in points],
        "batch norms": _alike(pruned, fxprune.compile(network(), images, 0.6, **OPTIONS)),
        "schedule": (schedule.finish().report.verified, type(schedule.model.up.weight) is DTensor),
    }

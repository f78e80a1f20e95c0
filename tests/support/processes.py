"""Two processes of the gloo backend that train one model on a schedule: data parallel, and with sharded parameters."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, multiprocessing, nn

import fxprune
from tests.support.schedules import attending, convolutional, images, same, tokens, trained

PROCESSES = 2


def spawned(work: Any, folder: Path, processes: int = PROCESSES) -> list[Any]:
    """Returns what some work returned in each of two gloo processes, or more, ``work(rank)``."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    multiprocessing.set_forkserver_preload(["torch", "fxprune.sparsity.schedule"])
    multiprocessing.start_processes(
        _process, (work, port, folder, processes), nprocs=processes, start_method="forkserver"
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(processes)]


def _process(rank: int, work: Any, port: int, folder: Path, processes: int) -> None:
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=processes)
    try:
        torch.save(work(rank), folder / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


@dataclass
class Told:
    """What a process is told where something fails, or ``"nothing"``, and after how many seconds, by what was tried."""

    found: dict[str, Any] = field(default_factory=dict)

    def attempt(self, name: str, call: Callable[[], Any]) -> None:
        """Tries something, and waits for the other processes."""
        start = time.monotonic()
        try:
            call()
            self.found[name] = "nothing"
        except Exception as error:
            self.found[name] = f"{type(error).__name__}: {error}"
        self.found[f"{name} s"] = time.monotonic() - start
        torch.distributed.barrier()


def share(data: tuple[Tensor, Tensor], rank: int) -> tuple[Tensor, Tensor]:
    return data[0][rank::PROCESSES], data[1][rank::PROCESSES]


def in_parallel(rank: int) -> dict[str, Any]:
    model, data = convolutional(), images()
    parallel = nn.parallel.DistributedDataParallel(model)
    schedule = fxprune.Schedule(parallel, [data[0]], 0.5, steps=8, every=2, sparsity="growing", strength=1.0)
    trained(parallel, share(data, rank), schedule, 10, torch.optim.SGD(parallel.parameters(), 0.05, momentum=0.9))
    pruned = schedule.finish()
    weights = {name: value.detach().clone() for name, value in pruned.named_parameters()}
    # of the buffers each process has its own, as DDP leaves them after the last forward pass
    return {"zero": dict(schedule.zero), "weights": weights, "error": same(pruned, model, data[0])}


def sharded(rank: int) -> dict[str, Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, data = attending(), tokens()
    schedule = fxprune.Schedule(model, [data[0]], 0.7, steps=8, every=2, sparsity="group_lasso", strength=1e-2)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    for layer in (model.up, model.down):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    trained(model, share(data, rank), schedule, 10, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9))
    with torch.no_grad():
        outputs = model.eval()(data[0])
    pruned = schedule.finish()
    with torch.no_grad():
        error = float((pruned(data[0]) - outputs).abs().max())
    later = fxprune.Schedule(model, [data[0]], 0.7, steps=8, every=2)
    later.load_state_dict(schedule.state_dict())
    return {
        "zero": dict(schedule.zero),
        "sizes": {name: tuple(p.shape) for name, p in pruned.named_parameters()},
        "error": error,
        "params": pruned.report.params,
        "local": type(model.up.weight).__name__,
        "later": dict(later.zero),
    }

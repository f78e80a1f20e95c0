"""A schedule beside what training scripts wrap a model in: AMP, averages of weights, several processes, sharded parameters."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, multiprocessing, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fxprune
from fxprune._base.errors import CalibrationError
from tests.support.schedules import attending, convolutional, images, same, schedule_of, tokens, trained

PROCESSES = 2


# -- one process ----------------------------------------------------------------------------------------------------------


def test_autocast_and_a_scaler_that_skips_a_step() -> None:
    model, data = convolutional().float(), images(dtype=torch.float32)
    schedule = schedule_of(model, data, sparsity="group_lasso", strength=1e-3)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    scaler, skipped = torch.amp.GradScaler("cpu", init_scale=2.0**8), 0
    for number in range(12):
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(data[0]), data[1])
        scaler.scale(loss).backward()
        if number == 6:
            model[3].conv1.weight.grad[0, 0] = float("inf")
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        skipped += scaler.get_scale() < scale
        optimizer.zero_grad()
        schedule.step(0.05)
        gone = (model[3].conv1.weight == 0).flatten(1).all(dim=1)
        assert int(gone.sum()) >= schedule.zero["3.conv1"]
    assert skipped == 1 and schedule.count == 12 and schedule.zero["3.conv1"] > 0
    assert all(p.isfinite().all() for p in model.parameters())
    assert same(schedule.finish(), model, data[0]) < 1e-5


def test_an_average_of_weights_is_finished_in_the_models_place() -> None:
    model, data = convolutional(), images()
    schedule = schedule_of(model, data)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(12):
        trained(model, data, schedule, 1)
        ema.update_parameters(model)
    gone = (model[3].conv1.weight == 0).flatten(1).all(dim=1)
    assert ema.module[3].conv1.weight[gone].any(), "an average remembers what was there"
    pruned = schedule.finish(ema)
    schedule.hold(ema)
    assert not ema.module[3].conv1.weight[gone].any()
    assert same(pruned, ema.module, data[0]) < 1e-9 < same(pruned, model, data[0])


def test_compiled_models_are_found_inside() -> None:
    model, data = convolutional(), images()
    schedule = schedule_of(torch.compile(model), data)  # type: ignore[arg-type]
    assert schedule.model is model


# -- two processes --------------------------------------------------------------------------------------------------------


def spawned(work: Any, folder: Path) -> list[Any]:
    """Returns what some work returned in each of two gloo processes, ``work(rank)``."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    multiprocessing.start_processes(_process, (work, port, folder), nprocs=PROCESSES, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(PROCESSES)]


def _process(rank: int, work: Any, port: int, folder: Path) -> None:
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=PROCESSES)
    try:
        torch.save(work(rank), folder / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


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


@pytest.mark.slow
def test_data_parallel_processes_choose_alike(tmp_path: Path) -> None:
    one, other = spawned(in_parallel, tmp_path)
    assert one["zero"] == other["zero"] and sum(one["zero"].values()) > 5
    assert one["weights"].keys() == other["weights"].keys()
    assert all(torch.equal(value, other["weights"][name]) for name, value in one["weights"].items())
    assert max(one["error"], other["error"]) < 1e-9


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
    try:
        fxprune.Schedule(model, [data[0]], 0.7, steps=8)
        refused = ""
    except CalibrationError as told:
        refused = str(told)
    return {
        "zero": dict(schedule.zero),
        "sizes": {name: tuple(p.shape) for name, p in pruned.named_parameters()},
        "error": error,
        "params": pruned.report.params,
        "local": type(model.up.weight).__name__,
        "refused": refused,
    }


@pytest.mark.slow
def test_sharded_parameters(tmp_path: Path) -> None:
    one, other = spawned(sharded, tmp_path)
    assert one["local"] == "DTensor" and one["zero"] == other["zero"] and one["sizes"] == other["sizes"]
    assert sum(one["zero"].values()) > 5 and one["params"][1] <= 0.7 * one["params"][0]
    assert max(one["error"], other["error"]) < 1e-9
    assert "DTensor" in one["refused"]


@pytest.mark.slow
def test_sharded_training_zeroes_what_training_in_one_process_does(tmp_path: Path) -> None:
    model, data = attending(), tokens()
    schedule = fxprune.Schedule(model, [data[0]], 0.7, steps=8, every=2, sparsity="group_lasso", strength=1e-2)
    trained(model, data, schedule, 10, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9))
    one, _ = spawned(sharded, tmp_path)
    assert one["zero"] == dict(schedule.zero)

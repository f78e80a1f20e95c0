"""A schedule beside what training scripts wrap a model in: AMP, averages of weights, several processes, sharded parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fxprune
from tests.support.processes import in_parallel, sharded, spawned
from tests.support.schedules import attending, convolutional, images, same, schedule_of, tokens, trained

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


@pytest.mark.slow
def test_data_parallel_processes_choose_alike(tmp_path: Path) -> None:
    one, other = spawned(in_parallel, tmp_path)
    assert one["zero"] == other["zero"] and sum(one["zero"].values()) > 5
    assert one["weights"].keys() == other["weights"].keys()
    assert all(torch.equal(value, other["weights"][name]) for name, value in one["weights"].items())
    assert max(one["error"], other["error"]) < 1e-9


@pytest.mark.slow
def test_sharded_parameters(tmp_path: Path) -> None:
    one, other = spawned(sharded, tmp_path)
    assert one["local"] == "DTensor" and one["zero"] == other["zero"] and one["sizes"] == other["sizes"]
    assert sum(one["zero"].values()) > 5 and one["params"][1] <= 0.7 * one["params"][0]
    assert max(one["error"], other["error"]) < 1e-9
    assert one["later"] == one["zero"]  # of a schedule that is made of what is sharded


@pytest.mark.slow
def test_sharded_training_zeroes_what_training_in_one_process_does(tmp_path: Path) -> None:
    model, data = attending(), tokens()
    schedule = fxprune.Schedule(model, [data[0]], 0.7, steps=8, every=2, sparsity="group_lasso", strength=1e-2)
    trained(model, data, schedule, 10, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9))
    one, _ = spawned(sharded, tmp_path)
    assert one["zero"] == dict(schedule.zero)

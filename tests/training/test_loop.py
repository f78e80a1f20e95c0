"""The loop: a step is done or not, whatever stops the run, and the world around it stays as it was."""

from __future__ import annotations

import math
import os
import random
import signal
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader

from fxprune._base.errors import TrainingError
from fxprune.training import finetune
from tests.support.training import SGD, Noisy, digest, net, pairs


def test_the_global_random_states_stay() -> None:
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    expected = (torch.rand(()).item(), random.random(), np.random.rand())
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    generator = torch.Generator().manual_seed(4)
    before = generator.get_state()
    loader = DataLoader(Noisy(), 8, shuffle=True, generator=generator)
    finetune(net(), loader, recipe=SGD, validation=pairs(), progress=False)
    assert (torch.rand(()).item(), random.random(), np.random.rand()) == expected
    assert torch.equal(generator.get_state(), before)


def test_an_error_leaves_the_last_finished_step() -> None:
    stopped, whole, batches, calls = net(), net(), pairs(32), []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(len(targets))
        return F.cross_entropy(outputs, targets) * (math.nan if len(calls) == 1 + 3 else 1.0)

    with pytest.raises(TrainingError, match=r"epoch 1, step 3: expected finite numbers, got a loss of nan"):
        finetune(stopped, batches, recipe=SGD, schedule="constant", loss=loss, progress=False)
    finetune(whole, batches[:2], recipe=SGD, epochs=1, schedule="constant", progress=False)
    assert digest(stopped) == digest(whole)  # batch norm's buffers too
    assert len(calls) == 4  # the first look, then three steps


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_step() -> None:
    model, before = net(), digest(net())

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - outputs.detach()).square().sum().sqrt()  # zero, of slope 0 / 0

    with pytest.raises(TrainingError, match=r"step 1: .* a loss of 0 and a gradient of norm nan"):
        finetune(model, pairs(), recipe=SGD, loss=loss, progress=False)
    assert digest(model) == before


def test_an_interrupt_waits_for_the_step_to_end() -> None:
    stopped, whole, steps = net(), net(), []

    def interrupt(*_: Any) -> None:
        steps.append(1)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    hook = register_optimizer_step_pre_hook(interrupt)
    # a process in the background may ignore the signal
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            finetune(stopped, pairs(32), recipe=SGD, schedule="constant", progress=False)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        hook.remove()
        signal.signal(signal.SIGINT, before)
    finetune(whole, pairs(32)[:2], recipe=SGD, epochs=1, schedule="constant", progress=False)
    assert len(steps) == 2
    assert digest(stopped) == digest(whole)


def test_flags_come_back_one_by_one() -> None:
    model = net()
    model.norm.eval()
    seen = []
    model.norm.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    finetune(model, pairs(), recipe=SGD, epochs=1, validation=pairs(), progress=False)
    assert model.training and not model.norm.training
    assert True in seen and False in seen

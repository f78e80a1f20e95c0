"""A world in which time is work: latencies that are made up, and so known exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fxprune.latency.layout import layout_of
from fxprune.latency.operation import Operation
from fxprune.runtimes.setting import Setting
from tests.support.pruning import linear_coupling

SETTING = Setting("cpu", 2, "eager", 1)


def made_up(operation: Operation, widths: tuple[int, ...]) -> float:
    """The milliseconds of an operation in a world where time is work, and each call has its price."""
    return 0.01 + 1e-4 * math.prod(widths) if operation.contracts else 0.01 + 1e-5 * sum(widths)


class Fake:
    """A stopwatch of that world: whole models take time by their products, unlike what the table adds up."""

    def __init__(self, original: nn.Module, args: tuple[Any, ...], kwargs: Any, setting: Setting = SETTING) -> None:
        self.setting, self.original, self.call = setting, original, (args, kwargs)
        self.measured: list[float] = []

    def operation(self, operation: Operation, widths: tuple[int, ...]) -> float:
        with FlopCounterMode(display=False) as counter:
            operation.runner(widths, self.setting)()
        return 0.01 + 5e-6 * counter.get_total_flops()

    def compare(self, operation: Operation, widths: Sequence[tuple[int, ...]]) -> list[float]:
        return [math.prod(math.ceil(w / 8) for w in each) * 1.0 for each in widths]

    def time(self, model: nn.Module) -> float:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(*self.call[0], **self.call[1])
        return 0.3 + 7e-6 * counter.get_total_flops() ** 1.02

    def models(self, models: Sequence[nn.Module]) -> list[float]:
        found = [self.time(model) for model in (self.original, *models)]
        self.measured += found[1:]
        return found


def product() -> Operation:
    """A product of 40 by 64 channels that may go."""
    return next(s.operation for s in layout_of(linear_coupling(8, 40, 64, 4), 1).steps if len(s.operation.widths) == 2)

"""A network, and a clock of a world in which time is work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune.latency import search, widths
from fxprune.latency.layout import example_call
from fxprune.latency.store import Store
from fxprune.runtimes.setting import Setting
from tests.models.small import classifier
from tests.support.latency import Fake


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[Fake]:
    """Lets `compile` measure with fakes; returns them."""
    made: list[Fake] = []

    def stopwatch_of(model: nn.Module, captured: Any, setting: Setting) -> Fake:
        made.append(Fake(model, *example_call(captured, setting.batch_size, "cpu"), setting))
        return made[-1]

    for module in (search, widths):
        monkeypatch.setattr(module, "stopwatch_of", stopwatch_of)
    monkeypatch.setattr(search, "store_of", lambda *_: Store())
    return made


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, Tensor]:
    return classifier(24, 32, 96, pool=2), torch.randn(4, 3, 12, 12)

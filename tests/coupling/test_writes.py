"""In-place writes reach every alias, or hold the channels that they touch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.fn import Fn
from tests.support.compiling import couple_fn
from tests.support.pruning import certify, prepared, removal
from tests.support.tensors import random

WRITES = {
    "stepped": lambda y: y[:, ::2].fill_(0.5),
    "stepped relu": lambda y: y[:, 1::2].relu_(),
    "transposed": lambda y: y.t()[::2].mul_(2.0),
    "reshaped": lambda y: y.view(-1, 2, 3)[:, :, ::2].mul_(2.0),
}


@pytest.mark.parametrize("how", WRITES)
def test_a_stepped_write_holds_all_of_its_base(how: str) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        WRITES[how](y)
        return m.b(m.c(y).relu())

    x = torch.randn(6, 5, dtype=torch.float64)
    parts = {"a": nn.Linear(5, 6), "c": nn.Linear(6, 8), "b": nn.Linear(8, 2)}
    coupling = prepared(Fn(forward, **parts), (x,))[1]
    assert [group.producers for group in coupling.groups] == [("c",)]
    assert "an in-place write" in coupling.explain("a")
    assert certify(coupling, (x,), removal(coupling, 0, 0.5)).verified is True


WRITTEN: dict[str, Callable[[Tensor], Any]] = {
    "relu_": lambda y: y.relu_(),
    "add_ to a slice": lambda y: y[:, 1:4].add_(1.0),
    "mul_ of a select": lambda y: y[:, 2].mul_(2),
    "unfold": lambda y: y.unfold(1, 3, 1).mul_(2),
    "diagonal": lambda y: y.diagonal().fill_(0.5),
    "masked": lambda y: y.masked_fill_(y > 0, 0.5),
    "index_put": lambda y: y.__setitem__((slice(None), torch.tensor([0, 2])), 0.5),
    "transposed": lambda y: y.t()[1:3].mul_(2),
}


@pytest.mark.parametrize("how", WRITTEN)
def test_a_write_reaches_every_alias_or_holds_its_channels(how: str) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        WRITTEN[how](y)
        return m.b(y)

    coupling = couple_fn(forward, random(6, 5), a=nn.Linear(5, 6), b=nn.Linear(6, 2))
    for share in (0.3, 0.5, 0.9) if coupling.groups else ():
        assert certify(coupling, (random(6, 5, seed=1),), removal(coupling, 0, share)).verified is True
    if how in ("unfold", "a part of a view"):
        assert not coupling.groups and any("unfold" in f.reason or "rule" in f.reason for f in coupling.frozen())

"""Recurrent layers and cells in tiny models."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tests.models.fn import Fn

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(6, 8, batch_first=True),
    "lstm, two layers, both ways": lambda: nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True),
    "lstm, time first, no bias": lambda: nn.LSTM(6, 8, 2, bias=False),
    "lstm, projected": lambda: nn.LSTM(6, 8, 2, proj_size=4, batch_first=True),
    "gru": lambda: nn.GRU(6, 8, batch_first=True),
    "gru, two layers, both ways": lambda: nn.GRU(6, 5, 2, batch_first=True, bidirectional=True),
    "tanh": lambda: nn.RNN(6, 8, batch_first=True),
    "relu": lambda: nn.RNN(6, 8, nonlinearity="relu", bidirectional=True, batch_first=True),
}


def tagger(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    width = layer(torch.randn(2, 3, 6))[0].shape[-1]
    return Fn(lambda m, x: m.head(m.rnn(m.make(x))[0]), make=nn.Linear(4, 6), rnn=layer, head=nn.Linear(width, 3))


def sequence() -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return (torch.randn(3, 7, 4, dtype=torch.float64),)


def every() -> Iterator[nn.Module]:
    """Yields a model with each op."""
    yield from (tagger(build()) for build in LAYERS.values())
    yield from map(loop, CELLS)


CELLS = {
    "lstm": nn.LSTMCell,
    "gru": nn.GRUCell,
    "tanh": nn.RNNCell,
    "relu": functools.partial(nn.RNNCell, nonlinearity="relu"),
}


def loop(kind: str) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        state: Any = None
        for step in m.make(x).unbind(1):
            state = m.cell(step, state)
        return m.head(state[0] if kind == "lstm" else state)

    return Fn(forward, make=nn.Linear(4, 6), cell=CELLS[kind](6, 8), head=nn.Linear(8, 3))

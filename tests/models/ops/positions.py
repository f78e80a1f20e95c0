"""Routers, and what reads the positions that they choose, in tiny models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.fn import Fn
from tests.models.ops.case import Case

T = (3, 4, 5)
COUNT = 6


def routed(function: Callable[..., Tensor]) -> Callable[[], nn.Module]:
    """A router of six, a table with a row for each of them, and six linear layers side by side."""
    return lambda: Fn(
        function,
        gate=nn.Linear(5, COUNT),
        table=nn.Parameter(torch.randn(COUNT, 7)),
        up=nn.Parameter(torch.randn(COUNT, 5, 7)),
        order=torch.arange(COUNT),
    )


def choose(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    weight, where = m.gate(x).topk(2)
    return weight.softmax(-1), where


def _scattered(empty: Callable[[Tensor], Tensor], method: str) -> Callable[..., Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        weight, where = choose(m, x)
        return getattr(empty(m.gate(x)), method)(-1, where, weight) @ m.table

    return forward


def _masked(m: Any, x: Tensor) -> Tensor:
    chosen = torch.zeros_like(m.gate(x)).scatter(-1, choose(m, x)[1], 1.0)
    return m.gate(x).masked_fill(chosen == 0, -torch.inf).softmax(-1) @ m.table


def one_hot(m: Any, x: Tensor) -> Tensor:
    weight, where = choose(m, x)
    return torch.einsum("bnk,bnke->bne", weight, F.one_hot(where, COUNT).to(x.dtype)) @ m.table


def _one_hot_of_more(m: Any, x: Tensor) -> Tensor:
    weight, where = choose(m, x)
    return torch.einsum("bnk,bnke->bne", weight, F.one_hot(where, COUNT + 1).to(x.dtype))[..., :COUNT] @ m.table


def _compared(unequal: bool, with_buffer: bool) -> Callable[..., Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        weight, where = choose(m, x)
        numbers = m.order if with_buffer else torch.arange(COUNT)
        found = (where.unsqueeze(-1) != numbers) if unequal else (numbers == where.unsqueeze(-1))
        return (weight.unsqueeze(-1) * found.to(x.dtype)).sum(-2) @ m.table

    return forward


def _weights_of_each(m: Any, x: Tensor) -> Tensor:
    weight, where = choose(m, x)
    return torch.einsum("bni,bnkio,bnk->bno", x, m.up[where], weight)


def _of_one(read: Callable[[Any, Tensor], Tensor]) -> Callable[..., Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        best, where = m.gate(x).softmax(-1).max(-1)
        return best.unsqueeze(-1) * read(m, where)

    return forward


def _counted(bins: int, last: int) -> Callable[..., Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        counts = torch.histc(m.gate(x).topk(2)[1].flatten().to(x.dtype), bins, 0, last)
        return (m.gate(x) * counts / counts.sum()) @ m.table

    return forward


def by_sorting(m: Any, x: Tensor) -> Tensor:
    return _grouped(m, x, torch.sort)


def by_sorting_twice(m: Any, x: Tensor) -> Tensor:
    return _grouped(m, x, lambda where: (where[torch.argsort(where)], torch.argsort(where)))


def _grouped(m: Any, x: Tensor, sort: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """As transformers send tokens to their experts."""
    tokens = x.flatten(0, 1)
    weight, where = (part.flatten() for part in choose(m, tokens))
    ordered, order = sort(where)
    ends = torch.histc(ordered.to(x.dtype), COUNT, 0, COUNT - 1).cumsum(0, dtype=torch.int32)
    rows = torch.ops.transformers.grouped_mm_fallback(tokens[order // 2], m.up, ends) * weight[order].unsqueeze(-1)
    back = torch.empty_like(order).index_put((order,), torch.arange(len(order)))
    return rows[back].view(-1, 2, 7).sum(1).view(*x.shape[:2], 7)


ROW = "6 expert: table[0] gate.weight[0] gate.bias[0]"
LAYER = "6 expert: up[0] gate.weight[0] gate.bias[0]"


def _case(name: str, function: Callable[..., Tensor], *groups: str, statistic: bool = True) -> Case:
    return Case(name, routed(function), [T], groups, statistic)


GOING = [
    _case("scatter to zeros alike", _scattered(torch.zeros_like, "scatter"), ROW),
    _case("scatter to zeros", _scattered(lambda y: torch.zeros(y.shape, dtype=y.dtype), "scatter"), ROW),
    _case("scatter_add", _scattered(torch.zeros_like, "scatter_add"), ROW),
    _case("scatter a mask", _masked, ROW),
    _case("one-hot", one_hot, ROW),
    _case("equal to 0, 1, 2 ...", _compared(False, False), ROW),
    _case("unequal to 0, 1, 2 ...", _compared(True, False), ROW),
    _case("rows of a weight", _weights_of_each, LAYER),
    _case("rows of a table", _of_one(lambda m, where: m.table[where]), ROW),
    _case("rows of a table, flat", _of_one(lambda m, w: m.table.index_select(0, w.flatten()).view(*w.shape, 7)), ROW),
    _case("embedding", _of_one(lambda m, where: F.embedding(where, m.table)), ROW),
    _case(
        "gather",
        lambda m, x: m.gate(x).sigmoid().gather(-1, m.gate(x).topk(2)[1]),
        "6 expert: gate.weight[0] gate.bias[0]",
    ),
    _case(
        "take along",
        lambda m, x: m.gate(x).sigmoid().take_along_dim(m.gate(x).topk(2)[1], -1),
        "6 expert: gate.weight[0] gate.bias[0]",
    ),
    _case("the largest", lambda m, x: F.embedding(m.gate(x).argmax(-1), m.table) * x.mean(-1, keepdim=True), ROW),
    _case("all, weighed", lambda m, x: torch.einsum("bni,eio,bne->bno", x, m.up, m.gate(x).softmax(-1)), LAYER),
    _case("counted, a bin each", _counted(COUNT, COUNT - 1), ROW),
    _case("counted, a bin each of width one", _counted(COUNT, COUNT), ROW),
]

#: What reads the positions does not know what they are.
STAYING = [
    _case("counted in other bins", _counted(COUNT, COUNT + 1)),
    _case("one-hot of more", _one_hot_of_more),
    _case("positions as numbers", lambda m, x: m.gate(x).topk(2)[1].to(x.dtype) + x.mean(), statistic=False),
    _case("equal to one of them", lambda m, x: (m.gate(x).topk(2)[1] == 3).to(x.dtype) + x.mean(), statistic=False),
    _case("rows of something else", lambda m, x: m.order.to(x.dtype)[m.gate(x).topk(2)[1]] + x.mean()),
]

CASES = GOING + STAYING

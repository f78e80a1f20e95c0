"""Graphs, masks and segments in tiny models: what reads and writes at positions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models.fn import Fn
from tests.models.ops.case import Case

NODES, MAPS = (3, 4, 5), (3, 3, 6, 4)
AT = torch.tensor([0, 2, 1, 2])
PASSED = ["6 channel: a.weight[0] a.bias[0] b.weight[1]"]
BOTH = ["6 channel: p.weight[0] p.bias[0] q.weight[0] q.bias[0] b.weight[1]"]


def _but_one(groups: list[str]) -> list[str]:
    """The groups without the channel that decides."""
    return [group.replace("6", "5") for group in groups]


def _one(function: Callable[[Tensor], Tensor]) -> Callable[[], Fn]:
    return lambda: Fn(lambda m, x: m.b(function(m.a(x))), a=nn.Linear(5, 6), b=nn.Linear(6, 2))


def _two(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Fn]:
    parts = {"p": nn.Linear(5, 6), "q": nn.Linear(5, 6), "b": nn.Linear(6, 2)}
    return lambda: Fn(lambda m, x: m.b(function(m.p(x), m.q(x))), **parts)


def _spread(like: Tensor) -> Tensor:
    return AT[None, :, None].expand_as(like)


def _convolved(m: Fn, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """A graph convolution: messages along edges, added up at the nodes that they reach."""
    y = m.a(x)
    messages = m.send(y.index_select(0, start)).relu()
    degree = x.new_zeros(len(x)).index_add(0, end, torch.ones_like(end, dtype=x.dtype)).clamp(min=1)
    return m.b(torch.zeros_like(y).index_add(0, end, messages) / degree[:, None] + y)  # type: ignore[no-any-return]


def _edges() -> tuple[Tensor, ...]:
    return torch.randn(7, 5, dtype=torch.float64), torch.randint(0, 7, (11,)), torch.randint(0, 7, (11,))


def _still(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``out=`` has no gradient."""
    return torch.no_grad()(function)


def _written(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, AT[:3]] = x[:, :3].sin()
    return y


def _added(x: Tensor, y: Tensor) -> Tensor:
    rows = torch.arange(len(x))[:, None]
    return x.index_put((rows, AT[None, :2]), y[:, 2:], accumulate=True)


def _filled(x: Tensor, y: Tensor) -> Tensor:
    mask = x[..., 0] > 0
    return x.index_put((mask,), y[0, 0])


def _held(x: Tensor) -> Tensor:
    mask = x.sum((1, 2)) > -9
    return torch.where(mask[:, None, None], x, 0).masked_fill(x[..., :1] > 1, 0.5)


ONE = {
    "index_fill": lambda x: x.index_fill(1, AT[:2], 0.5),
    "index_fill by a tensor": lambda x: x.index_fill(1, AT[:2], torch.tensor(0.5, dtype=x.dtype)),
    "gather along nodes": lambda x: x.gather(1, _spread(x)),
    "gather of some of it": lambda x: x.take_along_dim(AT[None, :2, None], 1),
    "scatter of a value": lambda x: x.scatter(1, _spread(x)[:, :2], 0.5),
    "scatter that multiplies by a value": lambda x: x.scatter(1, _spread(x)[:, :1], 0.5, reduce="multiply"),
    "written at positions": _written,
    "diff": lambda x: torch.diff(x, dim=1),
    "rot90": lambda x: x.rot90(1, (0, 1)).transpose(0, 1),
    "out=": _still(lambda x: torch.add(x, x.sin(), out=torch.empty_like(x))),
    "out= with gradients on": lambda x: torch.add(x, x.sin(), out=torch.empty_like(x)),
    "out= that grows": _still(lambda x: torch.mul(x, x, out=x.new_empty(0)) + 1),
    "a sum into out=": _still(lambda x: x + torch.sum(x, dim=1, keepdim=True, out=x.new_empty(len(x), 1, 6))),
    "what was written to out=": _still(lambda x: [o := torch.empty_like(x), torch.exp(x, out=o), o + x][-1]),
    "segments": lambda x: torch.segment_reduce(
        x.transpose(0, 1).contiguous(), "max", lengths=torch.tensor([1, 3]), unsafe=True
    ).transpose(0, 1),
}

TWO = {
    "index_add": lambda x, y: x.index_add(1, AT, y, alpha=2),
    "index_add in place": lambda x, y: x.clone().index_add_(1, AT, y),
    "index_copy": lambda x, y: x.index_copy(1, AT[:3], y[:, :3]),
    "index_reduce": lambda x, y: x.index_reduce(1, AT, y, "mean"),
    "scatter": lambda x, y: x.scatter(1, AT[None, :3, None].expand_as(y[:, :3]), y[:, :3]),
    "scatter_add": lambda x, y: x.scatter_add(1, _spread(y), y),
    "scatter that multiplies": lambda x, y: x.scatter(1, _spread(y), y, reduce="multiply"),
    "scatter_reduce": lambda x, y: x.scatter_reduce(1, _spread(y), y, "amax"),
    "index_put that adds": _added,
    "slice_scatter": lambda x, y: x.slice_scatter(y[:, :2], 1, 1, 3),
    "select_scatter": lambda x, y: x.select_scatter(y[:, 0], 1, 2),
}

CASES = [
    *(Case(name, _one(function), [NODES], PASSED) for name, function in ONE.items()),  # type: ignore[arg-type]
    *(Case(name, _two(function), [NODES], BOTH) for name, function in TWO.items()),  # type: ignore[arg-type]
    Case("held by a mask", _one(_held), [NODES], _but_one(PASSED), statistic=True),
    Case("index_put under a mask", _two(_filled), [NODES], _but_one(BOTH)),
    Case(
        "masked_scatter of rows",
        _two(lambda x, y: x.masked_scatter((x[..., :1] > 0).expand_as(x), y)),
        [NODES],
        _but_one(BOTH),
    ),
    Case(
        "a graph convolution",
        lambda: Fn(_convolved, a=nn.Linear(5, 6), send=nn.Linear(6, 6), b=nn.Linear(6, 2)),
        [],
        ["6 channel: a.weight[0] a.bias[0] send.weight[0] send.weight[1] send.bias[0] b.weight[1]"],
        inputs=_edges,
    ),
    Case(
        "a triangle of positions",
        lambda: Fn(
            lambda m, x: m.b((m.a(x) @ m.a(x).mT).tril(-1) @ m.c(x)),
            a=nn.Linear(5, 6),
            c=nn.Linear(5, 3),
            b=nn.Linear(3, 2),
        ),
        [NODES],
        ["6 channel: a.weight[0] a.bias[0]", "3 channel: c.weight[0] c.bias[0] b.weight[1]"],
    ),
    Case(
        "a triangle of each channel",
        lambda: Fn(lambda m, x: m.b(m.a(x).triu()), a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 2, 1)),
        [MAPS],
        PASSED,
    ),
    Case("a triangle over channels", _one(lambda x: x.tril()), [NODES], []),
    Case("index_add over channels", _one(lambda x: x.index_add(2, AT[:2], x[..., :2])), [NODES], []),
    Case(
        "scatter over channels",
        _one(lambda x: x.scatter_add(2, AT[None, None, :2].expand(3, 4, 2), x[..., :2])),
        [NODES],
        [],
    ),
    Case(
        "embedding_bag",
        lambda: Fn(
            lambda m, i: m.b(F.embedding_bag(i, m.w, mode="mean")), w=nn.Parameter(torch.randn(9, 6)), b=nn.Linear(6, 2)
        ),
        [],
        ["6 channel: w[1] b.weight[1]"],
        inputs=lambda: (torch.randint(0, 9, (4, 3)),),
    ),
]

"""What joins, splits and takes in tiny models."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models.fn import Fn
from tests.models.ops.case import Case

A = torch.ops.aten
X, T = (3, 3, 6, 4), (3, 4, 5)


def _one(function: Callable[[Tensor], Tensor], width: int, inner: int) -> Fn:
    return Fn(lambda m, x: m.b(function(m.a(x))), a=nn.Linear(5, width), b=nn.Linear(inner, 2))


def _two(function: Callable[[Tensor, Tensor], Tensor], left: int, right: int, inner: int) -> Fn:
    parts = {"p": nn.Linear(5, left), "q": nn.Linear(5, right), "b": nn.Linear(inner, 2)}
    return Fn(lambda m, x: m.b(function(m.p(x), m.q(x))), **parts)


def _remember(m: Fn, x: Tensor) -> Tensor:
    state = x.new_zeros(x.shape[0], 6)
    for step in x.unbind(1):
        gate, new = m.cell(torch.cat([step, state], 1)).chunk(2, 1)
        state = gate.sigmoid() * new.tanh() + state
    return m.b(state)  # type: ignore[no-any-return]


def _table(function: Callable[[Tensor, Tensor], Tensor]) -> Fn:
    return Fn(lambda m, i: m.b(function(m.w, i)), w=nn.Parameter(torch.randn(11, 6)), b=nn.Linear(6, 2))


def _ids() -> tuple[Tensor, ...]:
    return (torch.randint(0, 11, (4, 7)),)


CASES = [
    Case("cat", lambda: _two(lambda p, q: torch.cat([p, q], 2), 4, 6, 10), [T], ["4 channel: p.weight[0] p.bias[0] b.weight[1]", "6 channel: q.weight[0] q.bias[0] b.weight[1]"]),
    Case("concat", lambda: _two(lambda p, q: A.concat.default([p, q, p], -1), 4, 6, 14), [T], ["4 channel: p.weight[0] p.bias[0] b.weight[1]x2", "6 channel: q.weight[0] q.bias[0] b.weight[1]"]),
    Case("cat along another axis", lambda: _two(lambda p, q: torch.cat([p, q], 1), 6, 6, 6), [T], ["6 channel: p.weight[0] p.bias[0] q.weight[0] q.bias[0] b.weight[1]"]),
    Case("cat with the input", lambda: Fn(lambda m, x: m.b(torch.cat([x, m.a(x)], -1)), a=nn.Linear(5, 6), b=nn.Linear(11, 2)),
         [T], ["6 channel: a.weight[0] a.bias[0] b.weight[1]"]),
    Case("cat with zeros", lambda: Fn(lambda m, x: m.b(torch.cat([m.a(x), x.new_zeros(x.shape[0], 4, 3)], -1)),
                                      a=nn.Linear(5, 6), b=nn.Linear(9, 2)), [T], ["6 channel: a.weight[0] a.bias[0] b.weight[1]", "3 channel: b.weight[1]"]),
    Case("a cell over the input and what it remembers", lambda: Fn(_remember, cell=nn.Linear(5 + 6, 12), b=nn.Linear(6, 2)), [T],
         ["6 channel: cell.weight[0]x2 cell.weight[1] cell.bias[0]x2 b.weight[1]"]),
    Case("cat with nothing", lambda: Fn(lambda m, x: m.b(torch.cat([torch.zeros(0, dtype=x.dtype), m.a(x)], -1)),
                                        a=nn.Linear(5, 6), b=nn.Linear(6, 2)), [T], ["6 channel: a.weight[0] a.bias[0] b.weight[1]"]),
    Case("dense connections", lambda: Fn(lambda m, x: m.c(torch.cat([(y := m.a(x)), m.b(y), y], -1)),
                                         a=nn.Linear(5, 6), b=nn.Linear(6, 4), c=nn.Linear(16, 2)), [T], [
            "6 channel: a.weight[0] a.bias[0] b.weight[1] c.weight[1]x2",
            "4 channel: b.weight[0] b.bias[0] c.weight[1]",
        ]),
    Case("stack", lambda: _two(lambda p, q: torch.stack([p, q], 1).flatten(1, 2), 6, 6, 6), [T], ["6 channel: p.weight[0] p.bias[0] q.weight[0] q.bias[0] b.weight[1]"]),
    Case("stack of channels", lambda: _two(lambda p, q: torch.stack([p, q], -1).flatten(2), 6, 6, 12), [T], ["6 channel: p.weight[0] p.bias[0] q.weight[0] q.bias[0] b.weight[1]x2"]),
    Case("split", lambda: _one(lambda y: torch.cat([y[..., 4:].sin(), *y.split([4, 2], -1)], -1), 6, 8), [T], ["6 channel: a.weight[0] a.bias[0] b.weight[1] b.weight[1]x2"]),
    Case("chunk and gate", lambda: _one(lambda y: torch.mul(*y.chunk(2, -1)), 12, 6), [T], ["6 channel: a.weight[0]x2 a.bias[0]x2 b.weight[1]"]),
    Case("chunk of the batch", lambda: _one(lambda y: torch.cat([*torch.cat([y, y.exp()]).chunk(2)], -1), 6, 12), [T], ["6 channel: a.weight[0] a.bias[0] b.weight[1]x2"]),
    Case("split of the batch", lambda: _one(lambda y: torch.cat([y, y.exp()]).split(y.shape[0])[0], 6, 6), [T], ["6 channel: a.weight[0] a.bias[0] b.weight[1]"]),
    Case("unbind", lambda: _one(lambda y: sum(y.unflatten(2, (3, 4)).unbind(2)), 12, 4), [T], ["4 channel: a.weight[0]x3 a.bias[0]x3 b.weight[1]"]),
    Case("slice", lambda: _one(lambda y: y[..., 1:4], 6, 3), [T], ["6 channel: a.weight[0] a.bias[0] b.weight[1]"]),
    Case("slice with a step", lambda: _one(lambda y: y[..., 1::2], 7, 3), [T], ["7 channel: a.weight[0] a.bias[0] b.weight[1]"]),
    Case("slice with negative ends", lambda: _one(lambda y: y[..., -4:-1], 6, 3), [T], ["6 channel: a.weight[0] a.bias[0] b.weight[1]"]),
    Case("slices of every other channel",
         lambda: _one(lambda y: torch.cat([y[..., ::2].sin(), y[..., 1::2]], -1), 6, 6), [T], ["6 channel: a.weight[0] a.bias[0] b.weight[1]"]),
    Case("slice of heads", lambda: _one(lambda y: y.unflatten(2, (3, 4))[..., 1:, :2].flatten(2), 12, 4), [T], [
            "1 channel: a.weight[0]x4 a.bias[0]x4",
            "2 channel: a.weight[0]x4 a.bias[0]x4 b.weight[1]x2",
            "2 channel: a.weight[0]x3 a.bias[0]x3 b.weight[1]x2",
            "2 channel: a.weight[0]x3 a.bias[0]x3",
        ]),
    Case("slice of the batch", lambda: _one(lambda y: y[1:], 6, 6), [T], ["6 channel: a.weight[0] a.bias[0] b.weight[1]"]),
    Case("select", lambda: _one(lambda y: y + y[..., 2].unsqueeze(-1), 6, 6), [T], ["5 channel: a.weight[0] a.bias[0] b.weight[1]"]),
    Case("select of a token", lambda: _one(lambda y: y[:, 0], 6, 6), [T], ["6 channel: a.weight[0] a.bias[0] b.weight[1]"]),
    Case("select the last", lambda: Fn(lambda m, x: m.a(x)[..., -1], a=nn.Linear(5, 6)), [T], ["5 channel: a.weight[0] a.bias[0]"]),
    Case("index", lambda: _table(lambda w, i: w[i]), [], ["6 channel: w[1] b.weight[1]"], inputs=_ids),
    Case("index of the second axis", lambda: _one(lambda y: y[:, torch.tensor([0, 2, 2])], 6, 6), [T], ["6 channel: a.weight[0] a.bias[0] b.weight[1]"]),
    Case("index of channels", lambda: _one(lambda y: y[..., torch.tensor([0, 2, 2])], 6, 3), [T], []),
    Case("two indices apart",
         lambda: _one(lambda y: y.unflatten(1, (2, 2))[:, torch.tensor([0, 1, 1]), :, torch.tensor([0, 5, 2])], 6, 2),
         [T], []),
    Case("two indices together", lambda: Fn(
        lambda m, x: m.b((m.t[torch.tensor([0, 1]), torch.tensor([2, 0])]).sum(0) * m.a(x)), a=nn.Linear(5, 6),
        t=nn.Parameter(torch.randn(3, 4, 6)), b=nn.Linear(6, 2)), [T], ["6 channel: t[2] a.weight[0] a.bias[0] b.weight[1]"]),
    Case("index_select", lambda: _one(lambda y: y.index_select(1, torch.tensor([2, 0])), 6, 6), [T], ["6 channel: a.weight[0] a.bias[0] b.weight[1]"]),
    Case("index_select of channels", lambda: _one(lambda y: y.index_select(2, torch.tensor([2, 0])), 6, 2), [T], []),
    Case("roll", lambda: _one(lambda y: y.roll(1, 1), 6, 6), [T], ["6 channel: a.weight[0] a.bias[0] b.weight[1]"]),
    Case("roll of channels", lambda: _one(lambda y: y.roll(1, -1), 6, 6), [T], []),
    Case("roll of everything", lambda: _one(lambda y: y[0].roll(1).unsqueeze(0), 6, 6), [T], []),
    Case("flip", lambda: _one(lambda y: y.flip([1]), 6, 6), [T], ["6 channel: a.weight[0] a.bias[0] b.weight[1]"]),
    Case("gather", lambda: _one(lambda y: y.gather(2, torch.zeros(3, 4, 2, dtype=torch.int64)[: y.shape[0]]), 6, 2), [T],
         []),
    Case("take_along_dim", lambda: _one(lambda y: A.take_along_dim.default(y, y.argsort(1), 1), 6, 6), [T],
         ["6 channel: a.weight[0] a.bias[0] b.weight[1]"]),
    Case("embedding", lambda: nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 2)), [], ["6 channel: 0.weight[1] 1.weight[1]"], inputs=_ids),
    Case("pad of tokens", lambda: _one(lambda y: F.pad(y, (0, 0, 1, 2)), 6, 6), [T], ["6 channel: a.weight[0] a.bias[0] b.weight[1]"]),
    Case("pad of channels", lambda: _one(lambda y: F.pad(y, (2, 3), value=0.5), 6, 11), [T], ["6 channel: a.weight[0] a.bias[0] b.weight[1]", "5 channel: b.weight[1]"]),
    Case("pad of channels by one", lambda: _one(lambda y: F.pad(y, (0, 1)), 6, 7), [T], ["6 channel: a.weight[0] a.bias[0] b.weight[1]"]),
    Case("pad of channels after a narrow residual",
         lambda: Fn(lambda m, x: m.b(F.pad(m.p(x), (2, 2)) + m.q(x)), p=nn.Linear(5, 4), q=nn.Linear(5, 8), b=nn.Linear(8, 2)),
         [T], ["8 channel: p.weight[0] p.bias[0] q.weight[0] q.bias[0] b.weight[1]"]),
    Case("constant_pad_nd", lambda: _one(lambda y: A.constant_pad_nd(y, [2, 0], 0.5), 6, 8), [T], ["6 channel: a.weight[0] a.bias[0] b.weight[1]", "2 channel: b.weight[1]"]),
    Case("pad by reflection", lambda: _one(lambda y: F.pad(y, (2, 3), mode="reflect"), 6, 11), [T], []),
    Case("crop of channels", lambda: _one(lambda y: F.pad(y, (-1, -2)), 6, 3), [T], []),
]  # fmt: skip

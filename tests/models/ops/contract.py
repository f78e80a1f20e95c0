"""Sums of products in tiny models."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from tests.models.fn import Fn
from tests.models.ops.case import Case

A = torch.ops.aten


def _two(function: Callable[..., torch.Tensor], inner: int) -> Fn:
    """Two linear layers of one input, ``function(m, p(x), q(x))``, and one to read the result."""
    parts = {"p": nn.Linear(5, 12), "q": nn.Linear(5, 12), "o": nn.Linear(inner, 2)}
    return Fn(lambda m, x: function(m, m.p(x), m.q(x)), **parts)


def _heads(x: torch.Tensor, *sizes: int) -> torch.Tensor:
    return x.reshape(x.shape[0], x.shape[1], *sizes).transpose(1, 2)


CASES = [
    Case(
        "bilinear",
        lambda: Fn(
            lambda m, x: m.c(m.b(m.p(x), m.q(x.tanh())).relu()),
            p=nn.Linear(5, 6),
            q=nn.Linear(5, 4),
            b=nn.Bilinear(6, 4, 7),
            c=nn.Linear(7, 2),
        ),
        [(3, 4, 5)],
        [
            "6 channel: p.weight[0] p.bias[0] b.weight[1]",
            "4 channel: q.weight[0] q.bias[0] b.weight[2]",
            "7 channel: b.weight[0] b.bias[0] c.weight[1]",
        ],
    ),
    Case(
        "bilinear of twice the same, no bias",
        lambda: Fn(
            lambda m, x: m.c(m.b(h := m.p(x), h)),
            p=nn.Linear(5, 6),
            b=nn.Bilinear(6, 6, 7, bias=False),
            c=nn.Linear(7, 2),
        ),
        [(3, 5)],
        ["6 channel: p.weight[0] p.bias[0] b.weight[1] b.weight[2]", "7 channel: b.weight[0] c.weight[1]"],
    ),
    Case(
        "linear",
        lambda: Fn(lambda m, x: m.b(m.a(x)), a=nn.Linear(5, 6), b=nn.Linear(6, 2)),
        [(3, 5)],
        ["6 channel: a.weight[0] a.bias[0] b.weight[1]"],
    ),
    Case(
        "linear without bias, a middle dimension",
        lambda: Fn(lambda m, x: m.b(m.a(x)), a=nn.Linear(5, 6, bias=False), b=nn.Linear(6, 2, bias=False)),
        [(3, 4, 5)],
        ["6 channel: a.weight[0] b.weight[1]"],
    ),
    Case(
        "linear of a computed weight",
        lambda: Fn(
            lambda m, x: m.b(nn.functional.linear(x, m.w.t() * m.s)),
            w=nn.Parameter(torch.randn(5, 6)),
            s=nn.Parameter(torch.randn(6, 1)),
            b=nn.Linear(6, 2),
        ),
        [(3, 5)],
        ["6 channel: w[1] s[0] b.weight[1]"],
    ),
    Case(
        "matmul with a parameter at the right",
        lambda: Fn(
            lambda m, x: m.b(m.a(x) @ m.w), a=nn.Linear(5, 6), w=nn.Parameter(torch.randn(6, 7)), b=nn.Linear(7, 2)
        ),
        [(3, 4, 5)],
        ["6 channel: w[0] a.weight[0] a.bias[0]", "7 channel: w[1] b.weight[1]"],
    ),
    Case(
        "matmul with a parameter at the left",
        lambda: Fn(
            lambda m, x: m.b((m.w @ m.a(x)).transpose(1, 2)),
            a=nn.Linear(5, 6),
            w=nn.Parameter(torch.randn(7, 4)),
            b=nn.Linear(7, 2),
        ),
        [(3, 4, 5)],
        ["7 channel: w[0] b.weight[1]"],
    ),
    Case(
        "matmul over heads",
        lambda: _two(lambda m, p, q: m.o((_heads(p, 3, 4) @ _heads(q, 3, 4).transpose(-1, -2)).sum(1)), 7),
        [(3, 7, 5)],
        [
            "3 head: p.weight[0]x4 p.bias[0]x4 q.weight[0]x4 q.bias[0]x4",
            "4 head_dim: p.weight[0]x3 p.bias[0]x3 q.weight[0]x3 q.bias[0]x3",
        ],
        statistic=True,
    ),
    Case(
        "mm",
        lambda: Fn(
            lambda m, x: m.b(A.mm.default(m.a(x), m.w)),
            a=nn.Linear(5, 6),
            w=nn.Parameter(torch.randn(6, 7)),
            b=nn.Linear(7, 2),
        ),
        [(3, 5)],
        ["6 channel: w[0] a.weight[0] a.bias[0]", "7 channel: w[1] b.weight[1]"],
    ),
    Case(
        "bmm",
        lambda: _two(lambda m, p, q: m.o(torch.bmm(p.transpose(1, 2), q)), 12),
        [(3, 7, 5)],
        ["12 channel: q.weight[0] q.bias[0] o.weight[1]"],
    ),
    Case(
        "mv",
        lambda: Fn(lambda m, x: torch.mv(m.a(x), m.w), a=nn.Linear(5, 6), w=nn.Parameter(torch.randn(6))),
        [(3, 5)],
        ["6 channel: w[0] a.weight[0] a.bias[0]"],
    ),
    Case(
        "dot of two parameters",
        lambda: Fn(
            lambda m, x: x * torch.dot(m.v, m.w), v=nn.Parameter(torch.randn(6)), w=nn.Parameter(torch.randn(6))
        ),
        [(3, 5)],
        ["6 channel: v[0] w[0]"],
    ),
    Case(
        "matmul of two vectors",
        lambda: Fn(lambda m, x: x * (m.v @ m.w), v=nn.Parameter(torch.randn(6)), w=nn.Parameter(torch.randn(6))),
        [(3, 5)],
        ["6 channel: v[0] w[0]"],
    ),
    Case(
        "addmm",
        lambda: Fn(
            lambda m, x: m.b(torch.addmm(m.s, m.a(x), m.w)),
            a=nn.Linear(5, 6),
            w=nn.Parameter(torch.randn(6, 7)),
            s=nn.Parameter(torch.randn(7)),
            b=nn.Linear(7, 2),
        ),
        [(3, 5)],
        ["6 channel: w[0] a.weight[0] a.bias[0]", "7 channel: w[1] s[0] b.weight[1]"],
    ),
    Case(
        "baddbmm",
        lambda: Fn(
            lambda m, x: m.o(torch.baddbmm(m.s, m.p(x).transpose(1, 2), m.q(x), beta=0.5)),
            p=nn.Linear(5, 4),
            q=nn.Linear(5, 6),
            s=nn.Parameter(torch.randn(1, 4, 6)),
            o=nn.Linear(6, 2),
        ),
        [(3, 7, 5)],
        ["6 channel: s[2] q.weight[0] q.bias[0] o.weight[1]"],
    ),
    Case(
        "einsum of attention",
        lambda: _two(
            lambda m, p, q: m.o(
                torch.einsum(
                    "bhlm,bmhd->blhd",
                    torch.einsum("blhd,bmhd->bhlm", p.unflatten(2, (3, 4)), q.unflatten(2, (3, 4))).softmax(-1),
                    q.unflatten(2, (3, 4)),
                ).flatten(2)
            ),
            12,
        ),
        [(3, 7, 5)],
        [
            "3 head: p.weight[0]x4 p.bias[0]x4 q.weight[0]x4 q.bias[0]x4 o.weight[1]x4",
            "4 head_dim: p.weight[0]x3 p.bias[0]x3 q.weight[0]x3 q.bias[0]x3 o.weight[1]x3",
        ],
    ),
    Case(
        "einsum of one operand",
        lambda: Fn(
            lambda m, x: torch.einsum("oi->o", m.w) * m.a(x), a=nn.Linear(5, 6), w=nn.Parameter(torch.randn(6, 4))
        ),
        [(3, 5)],
        ["4 channel: w[1]"],
    ),
    Case(
        "einsum of three operands",
        lambda: Fn(
            lambda m, x: torch.einsum("bi,oi,o->bo", m.a(x), m.w, m.s),
            a=nn.Linear(5, 6),
            w=nn.Parameter(torch.randn(4, 6)),
            s=nn.Parameter(torch.randn(4)),
        ),
        [(3, 5)],
        ["6 channel: w[1] a.weight[0] a.bias[0]"],
    ),
]

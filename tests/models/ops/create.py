"""Values made from literals in tiny models."""

from __future__ import annotations

import torch
from torch import nn

from tests.models.fn import Fn
from tests.models.ops.case import Case

A = torch.ops.aten
T = (3, 4, 5)
GROUPS = ["6 channel: a.weight[0] a.bias[0] b.weight[1]"]
SOLE = ["6 channel: a.weight[0] a.bias[0]"]

MAKERS = {
    "arange": lambda x: A.arange(6, dtype=x.dtype),
    "arange.start": lambda x: A.arange.start(2, 8, dtype=x.dtype),
    "arange.start_step": lambda x: A.arange.start_step(0, 12, 2, dtype=x.dtype),
    "linspace": lambda x: A.linspace(0.1, 2.0, 6, dtype=x.dtype),
    "zeros": lambda x: torch.zeros(6, dtype=x.dtype),
    "ones": lambda x: torch.ones(1, 6, dtype=x.dtype),
    "full": lambda x: torch.full((6,), 0.5, dtype=x.dtype),
    "eye": lambda x: torch.eye(6, dtype=x.dtype)[2],
    "eye.m": lambda x: torch.eye(4, 6, dtype=x.dtype),
    "scalar_tensor": lambda x: A.scalar_tensor(0.5, dtype=x.dtype),
    "new_zeros": lambda x: x.new_zeros(6),
    "new_ones": lambda x: x.new_ones(4, 6),
    "new_full": lambda x: x.new_full((6,), 0.25),
    "new_empty": lambda x: x.new_empty(6).mul(0).nan_to_num(),
    "empty": lambda x: torch.empty(6, dtype=x.dtype).mul(0).nan_to_num(),
    "tril_indices": lambda x: torch.tril_indices(3, 3)[0].to(x.dtype),
    "triu_indices": lambda x: torch.triu_indices(3, 3)[1].to(x.dtype),
}

CASES = [
    *(Case(name, lambda f=f: Fn(lambda m, x: m.b(m.a(x) * (1 + f(x)) + f(x)), a=nn.Linear(5, 6), b=nn.Linear(6, 2)), [T],
           GROUPS) for name, f in MAKERS.items()),
    Case("shared by two layers", lambda: Fn(
        lambda m, x: m.c((y := torch.arange(6, dtype=x.dtype).sin()) * m.b(m.a(x) * y)), a=nn.Linear(5, 6), b=nn.Linear(6, 6),
        c=nn.Linear(6, 2)), [T], ["6 channel: a.weight[0] a.bias[0] b.weight[1]", "6 channel: b.weight[0] b.bias[0] c.weight[1]"]),
    Case("a table made from literals", lambda: Fn(
        lambda m, x: m.b(m.a(x) + torch.outer(torch.arange(4.0, dtype=x.dtype), torch.arange(6.0, dtype=x.dtype)).sin()),
        a=nn.Linear(5, 6), b=nn.Linear(6, 2)), [T], GROUPS),
    Case("a buffer that is not saved", lambda: _with_table(), [T], GROUPS),
    Case("a weight made from literals", lambda: Fn(
        lambda m, x: m.b(nn.functional.linear(m.a(x), torch.ones(4, 6, dtype=x.dtype).triu())), a=nn.Linear(5, 6),
        b=nn.Linear(4, 2)), [T], ["6 channel: a.weight[0] a.bias[0]", "4 channel: b.weight[1]"]),
    Case("an op without a rule on literals", lambda: Fn(
        lambda m, x: m.b(m.a(x) * (1 + torch.ones(4, 6, dtype=x.dtype).triu())), a=nn.Linear(5, 6), b=nn.Linear(6, 2)), [T],
        GROUPS),
    Case("an op without a rule on the input", lambda: Fn(
        lambda m, x: m.b(m.a(x) * x.triu()), a=nn.Linear(5, 5), b=nn.Linear(5, 2)), [T], []),
    Case("read by a matrix of literals", lambda: Fn(
        lambda m, x: m.a(x) @ torch.arange(12.0, dtype=x.dtype).reshape(6, 2), a=nn.Linear(5, 6)), [T], SOLE),
]  # fmt: skip


def _with_table() -> nn.Module:
    model = Fn(lambda m, x: m.b(m.a(x) * m.table), a=nn.Linear(5, 6), b=nn.Linear(6, 2))
    model.register_buffer("table", torch.rand(4, 6, dtype=torch.float64) + 0.5, persistent=False)
    return model

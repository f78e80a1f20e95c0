"""Reductions and scans in tiny models."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.models.fn import Fn
from tests.models.ops.case import Case

A = torch.ops.aten

#: Over dimension 1 of [batch, 6, 4]; of pairs, the parts that matter.
PARTS: dict[str, Callable[..., Tensor]] = {
    "mean": lambda x, **k: x.mean(1, **k),
    "sum": lambda x, **k: x.sum(1, **k),
    "amax": lambda x, **k: x.amax(1, **k),
    "amin": lambda x, **k: x.amin(1, **k),
    "prod": lambda x, **k: x.prod(1, **k),
    "var": lambda x, **k: A.var.correction(x, [1], correction=0, **k),
    "var.dim": lambda x, **k: A.var.dim(x, [1], False, **k),
    "std": lambda x, **k: A.std.correction(x, [1], correction=0, **k),
    "std.dim": lambda x, **k: A.std.dim(x, [1], False, **k),
    "logsumexp": lambda x, **k: x.logsumexp(1, **k),
    "any": lambda x, **k: (x > 1).any(1, **k).to(x.dtype),
    "all": lambda x, **k: (x > -1).all(1, **k).to(x.dtype),
    "norm": lambda x, **k: A.norm.ScalarOpt_dim(x, 2, [1], **k),
    "nansum": lambda x, **k: x.nansum(1, **k),
    "vector_norm": lambda x, **k: torch.linalg.vector_norm(x, 3, 1, **k),
    "var_mean": lambda x, **k: sum(A.var_mean.correction(x, [1], correction=0, **k)),
    "var_mean.dim": lambda x, **k: sum(A.var_mean.dim(x, [1], False, **k)),
    "std_mean": lambda x, **k: sum(A.std_mean.correction(x, [1], correction=0, **k)),
    "std_mean.dim": lambda x, **k: sum(A.std_mean.dim(x, [1], False, **k)),
    "aminmax": lambda x, **k: sum(torch.aminmax(x, dim=1, **k)),
    "max": lambda x, **k: x.max(1, **k)[0],
    "min": lambda x, **k: x.min(1, **k)[0],
    "median": lambda x, **k: x.median(1, **k)[0],
    "mode": lambda x, **k: x.mode(1, **k)[0],
    "max and where": lambda x, **k: sum(x.max(1, **k)),
    "min's place": lambda x, **k: x.min(1, **k)[1].to(x.dtype),
    "argmax": lambda x, **k: x.argmax(1, **k).to(x.dtype),
    "argmin": lambda x, **k: x.argmin(1, **k).to(x.dtype),
}

POSITIONS = {"max and where", "min's place", "argmax", "argmin"}

SCANS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(1),
    "_softmax": lambda x: A._softmax(x, 1, False),
    "log_softmax": lambda x: x.log_softmax(1),
    "_log_softmax": lambda x: A._log_softmax(x, 1, False),
    "cumsum": lambda x: x.cumsum(1),
    "cumprod": lambda x: x.cumprod(1),
    "logcumsumexp": lambda x: x.logcumsumexp(1),
    "sort": lambda x: A.sort.default(x, 1)[0],
    "sort.stable": lambda x: A.sort.stable(x, stable=True, dim=1)[0],
    "argsort": lambda x: x.argsort(1).to(x.dtype),
    "argsort.stable": lambda x: x.argsort(dim=1, stable=True).to(x.dtype),
    "topk": lambda x: x.topk(4, 1)[0],
}


class Many(nn.Module):
    """Each function of a linear layer of its own, over its channels (``inner`` False) or over tokens."""

    def __init__(self, functions: list[Callable[[Tensor], Tensor]], over_channels: bool, read: bool) -> None:
        super().__init__()
        self.functions, self.over_channels = functions, over_channels
        self.makers = nn.ModuleList(nn.Linear(5, 6) for _ in functions)
        self.readers = nn.ModuleList(nn.Linear(6, 2) for _ in functions) if read else [nn.Identity()] * len(functions)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        results = []
        for function, maker, reader in zip(self.functions, self.makers, self.readers, strict=True):
            y = maker(x)
            results.append(reader(function(y.transpose(1, 2) if self.over_channels else y)))
        return tuple(results)


T = (3, 4, 5)
SQUARED = ["6 channel: a.weight[0] a.bias[0]"]


def _whole(function: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Fn(lambda m, x: x * function(m.a(x)), a=nn.Linear(5, 6))


CASES = [
    *(
        Case(f"{name} of everything", _whole(function), [T], SQUARED, statistic=True)
        for name, function in {
            "mean": torch.mean, "sum": torch.sum, "amax": lambda y: y.amax(), "std": lambda y: A.std.correction(y),
            "any": lambda y: (y > 1).any(), "all": lambda y: (y > -9).all(), "logsumexp": lambda y: y.logsumexp((0, 1, 2)),
            "norm": lambda y: torch.linalg.vector_norm(y), "aminmax": lambda y: sum(torch.aminmax(y)),
        }.items()
    ),
    Case("mean over two dimensions", _whole(lambda y: y.mean((1, 2), keepdim=True)), [T], SQUARED, statistic=True),
    Case("mean over space", lambda: Fn(lambda m, x: m.b(m.a(x).mean((2, 3))), a=nn.Conv2d(3, 6, 1), b=nn.Linear(6, 2)),
         [(3, 3, 4, 5)], ["6 channel: a.weight[0] a.bias[0] b.weight[1]"]),
    *(
        Case(f"{name} over channels", lambda f=function: Fn(
            lambda m, x: m.b(f(m.a(x))), a=nn.Linear(5, 6), b=nn.Linear(6, 2)), [T],
            ["6 channel: a.weight[0] a.bias[0] b.weight[1]"], statistic=True)
        for name, function in {
            "softmax": lambda y: y.softmax(-1), "_softmax": lambda y: A._softmax(y, 2, False),
            "log_softmax": lambda y: y.log_softmax(2), "_log_softmax": lambda y: A._log_softmax(y, -1, False),
            "cumsum": lambda y: y.cumsum(-1), "cumprod": lambda y: y.cumprod(2), "logcumsumexp": lambda y: y.logcumsumexp(-1),
        }.items()
    ),
    Case("softmax over each of two heads", lambda: Fn(
        lambda m, x: m.b(m.a(x) * m.a(x).unflatten(-1, (2, 3)).softmax(-1).flatten(2)), a=nn.Linear(5, 6), b=nn.Linear(6, 2)), [T],
        ["2 channel: a.weight[0]x3 a.bias[0]x3 b.weight[1]x3", "3 channel: a.weight[0]x2 a.bias[0]x2 b.weight[1]x2"],
        statistic=True),
    Case("the largest of all channels", lambda: Fn(
        lambda m, x: m.a(x).topk(2)[0], a=nn.Linear(5, 6)), [T], ["6 channel: a.weight[0] a.bias[0]"], statistic=True),
    Case("all of them, in order", lambda: Fn(lambda m, x: m.a(x).topk(6)[0], a=nn.Linear(5, 6)), [T], []),
    Case("softmax over learned tokens", lambda: Fn(
        lambda m, x: (x @ m.a(m.tokens).t()).softmax(-1) @ m.tokens, a=nn.Linear(5, 5), tokens=nn.Parameter(torch.randn(6, 5))),
        [T], []),
    Case("softmax over keys", lambda: Fn(
        lambda m, x: (m.a(x) @ m.b(x).transpose(1, 2)).softmax(-1) @ x, a=nn.Linear(5, 6), b=nn.Linear(5, 6)), [T],
        ["6 channel: a.weight[0] a.bias[0] b.weight[0] b.bias[0]"]),
    Case("a statistic of a weight", lambda: Fn(
        lambda m, x: x @ (m.w - m.w.mean(0, keepdim=True)).T, w=nn.Parameter(torch.randn(6, 5))), [T],
        [], statistic=True),
    Case("sum of a derived weight", lambda: Fn(
        lambda m, x: m.b(m.a(x)) * (m.b.weight * 2).sum(1), a=nn.Linear(5, 6), b=nn.Linear(6, 2)), [T],
        ["6 channel: a.weight[0] a.bias[0] b.weight[1]"], statistic=True),
]  # fmt: skip

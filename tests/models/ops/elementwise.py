"""Elementwise ops in tiny models."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models.fn import Fn
from tests.models.ops.case import Case

A = torch.ops.aten
Unary = Callable[[Tensor], Tensor]

#: By op, so that the completeness test can tell what is covered; each is called as it stands.
UNARY: dict[str, Unary] = {
    "to.dtype": lambda x: A.to.dtype(x, torch.float32).to(x.dtype),
    "_to_copy": lambda x: A._to_copy(x, dtype=torch.float32).to(x.dtype),
    "clone": torch.clone,
    "contiguous": lambda x: x.contiguous(),
    "dropout": lambda x: A.dropout(x, 0.5, False),
    "feature_dropout": lambda x: A.feature_dropout(x, 0.5, False),
    "alpha_dropout": lambda x: A.alpha_dropout(x, 0.5, False),
    "feature_alpha_dropout": lambda x: A.feature_alpha_dropout(x, 0.5, False),
    "zeros_like": lambda x: x + torch.zeros_like(x),
    "ones_like": lambda x: x * torch.ones_like(x),
    "full_like": lambda x: x * torch.full_like(x, 2.0),
    "empty_like": lambda x: x + torch.empty_like(x).mul(0).nan_to_num(),
    "hardsigmoid": F.hardsigmoid, "hardswish": F.hardswish, "hardtanh": F.hardtanh, "relu6": F.relu6,
    "selu": F.selu, "silu": F.silu, "gelu": F.gelu, "mish": F.mish, "leaky_relu": F.leaky_relu, "elu": F.elu,
    "celu": F.celu, "softplus": F.softplus, "log_sigmoid": F.logsigmoid, "rrelu": lambda x: F.rrelu(x),
    "neg": torch.neg, "sqrt": lambda x: x.abs().sqrt(), "reciprocal": lambda x: (x.abs() + 1.0).reciprocal(),
    "threshold": lambda x: F.threshold(x, 0.1, 0.2), "square": torch.square, "nan_to_num": torch.nan_to_num,
    "rsub.Scalar": lambda x: torch.rsub(x, 2.0), "hardshrink": F.hardshrink, "softshrink": F.softshrink,
    "clip": lambda x: torch.clip(x, -1.0, 1.0), "div.Scalar_mode": lambda x: A.div.Scalar_mode(x, 0.3, rounding_mode="floor"),
    "masked_fill.Scalar": lambda x: x.masked_fill(x > 0.5, 0.1),
    "masked_fill.Tensor": lambda x: x.masked_fill(x > 0.5, torch.tensor(0.1, dtype=x.dtype)),
    "where.ScalarOther": lambda x: torch.where(x > 0, x, 0.5),
    "where.ScalarSelf": lambda x: torch.where(x > 0, 0.5, x),
    "where.Scalar": lambda x: x * A.where.Scalar(x > 0, 2.0, 0.5),
    "__and__.Tensor": lambda x: x * A.__and__.Tensor(x > 0, x < 1),
    "__or__.Tensor": lambda x: x * A.__or__.Tensor(x > 0, x < -1),
    "__xor__.Tensor": lambda x: x * A.__xor__.Tensor(x > 0, x < 1),
    "__and__.Scalar": lambda x: x * A.__and__.Scalar((x * 9).to(torch.int64), 3),
    "__or__.Scalar": lambda x: x * A.__or__.Scalar((x * 9).to(torch.int64), 4),
    "isfinite": lambda x: x * torch.isfinite(x), "isnan": lambda x: x + torch.isnan(x),
    "isinf": lambda x: x + torch.isinf(x), "logical_not": lambda x: x * torch.logical_not(x > 0),
    "tanh": torch.tanh, "erf": torch.erf, "pow": lambda x: x**2, "cos": torch.cos,
}  # fmt: skip

BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "atan2": torch.atan2,
    "minimum": torch.minimum,
    "div.Tensor_mode": lambda x, y: torch.div(x, 1 + y.abs(), rounding_mode="trunc") + y,
    "floor_divide": lambda x, y: torch.floor_divide(x, 1 + y.abs()) + y,
    "rsub.Tensor": torch.rsub,
    "min.other": A.min.other,
    "max.other": A.max.other,
    "where.self": lambda x, y: torch.where(x > 0, x, y),
    "expand_as": lambda x, y: x.expand_as(y) + y,
    "type_as": lambda x, y: x.type_as(y) + y,
    "clamp.Tensor": lambda x, y: torch.clamp(x, min=y),
    "lerp.Scalar": lambda x, y: torch.lerp(x, y, 0.3),
    "lerp.Tensor": lambda x, y: torch.lerp(x, y, y.sigmoid()),
    "addcmul": lambda x, y: torch.addcmul(x, x, y),
    "addcdiv": lambda x, y: torch.addcdiv(x, x, 1 + y.abs()),
}


class Many(nn.Module):
    """Each function between linear layers of its own, in one graph."""

    def __init__(self, functions: list[Callable[..., Tensor]], operands: int) -> None:
        super().__init__()
        self.functions = functions
        self.makers = nn.ModuleList(nn.ModuleList(nn.Linear(5, 6) for _ in range(operands)) for _ in functions)
        self.readers = nn.ModuleList(nn.Linear(6, 2) for _ in functions)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        rows = zip(self.functions, self.makers, self.readers, strict=True)
        return tuple(reader(function(*(m(x) for m in makers))) for function, makers, reader in rows)


X, T = (3, 3, 7, 6), (3, 4, 5)


def _gated(function: Callable[..., Tensor], **parts: object) -> nn.Module:
    return Fn(function, a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 2, 1), **parts)


CASES = [
    Case("a scale for each channel", lambda: _gated(lambda m, x: m.b(m.a(x) * m.s), s=nn.Parameter(torch.randn(6, 1, 1))),
         [X], ["6 channel: s[0] a.weight[0] a.bias[0] b.weight[1]"]),
    Case("a constant for each channel", lambda: _gated(lambda m, x: m.b(m.a(x) * m.s), s=torch.rand(6, 1, 1) + 0.5),
         [X], ["6 channel: a.weight[0] a.bias[0] b.weight[1] s[0]"]),
    Case("a scalar parameter", lambda: _gated(lambda m, x: m.b(m.a(x) * m.s), s=nn.Parameter(torch.randn(1))), [X], ["6 channel: a.weight[0] a.bias[0] b.weight[1]"]),
    Case("a gate of one channel is kept",
         lambda: Fn(lambda m, x: m.b(m.a(x) * m.g(x)), a=nn.Conv2d(3, 6, 1), g=nn.Conv2d(3, 1, 1), b=nn.Conv2d(6, 2, 1)),
         [X], ["6 channel: a.weight[0] a.bias[0] b.weight[1]"]),
    Case("an input holds what it meets", lambda: Fn(lambda m, x: m.b(m.a(x) + x), a=nn.Linear(5, 5), b=nn.Linear(5, 2)),
         [T], []),
    Case("both factors of an outer product",
         lambda: Fn(lambda m, x: m.b((m.p(x).unsqueeze(2) * m.q(x).unsqueeze(1)).flatten(1)),
                    p=nn.Linear(5, 3), q=nn.Linear(5, 4), b=nn.Linear(12, 2)),
         [(3, 5)], ["3 channel: p.weight[0] p.bias[0] b.weight[1]x4", "4 channel: q.weight[0] q.bias[0] b.weight[1]x3"]),
    Case("prelu", lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.PReLU(6), nn.Conv2d(6, 2, 1)), [X], ["6 channel: 0.weight[0] 0.bias[0] 1.weight[0] 2.weight[1]"]),
    Case("prelu of one slope", lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.PReLU(), nn.Conv2d(6, 2, 1)), [X], ["6 channel: 0.weight[0] 0.bias[0] 2.weight[1]"]),
    Case("prelu kernel", lambda: _gated(lambda m, x: m.b(A._prelu_kernel(m.a(x), m.s)), s=nn.Parameter(torch.randn(6, 1, 1))),
         [X], ["6 channel: s[0] a.weight[0] a.bias[0] b.weight[1]"]),
    Case("glu", lambda: nn.Sequential(nn.Linear(5, 12), nn.GLU(), nn.Linear(6, 2)), [T], ["6 channel: 0.weight[0]x2 0.bias[0]x2 2.weight[1]"]),
    Case("glu of channels", lambda: nn.Sequential(nn.Conv2d(3, 12, 1), nn.GLU(1), nn.Conv2d(6, 2, 1)), [X], ["6 channel: 0.weight[0]x2 0.bias[0]x2 2.weight[1]"]),
    Case("outer", lambda: Fn(lambda m, x: m.b(x * torch.outer(m.v, m.w)), v=nn.Parameter(torch.randn(4)),
                             w=nn.Parameter(torch.randn(5)), b=nn.Linear(5, 2)), [T], []),
    Case("outer, read by a layer", lambda: Fn(lambda m, x: m.b(torch.ger(m.v, m.w)) * x[..., :2],
                                              v=nn.Parameter(torch.randn(4)), w=nn.Parameter(torch.randn(6)), b=nn.Linear(6, 2)),
         [T], ["6 channel: w[0] b.weight[1]"]),
    Case("native dropout", lambda: Fn(lambda m, x: m.b(torch.native_dropout(m.a(x), 0.5, False)[0]),
                                      a=nn.Linear(5, 6), b=nn.Linear(6, 2)), [T], ["6 channel: a.weight[0] a.bias[0] b.weight[1]"]),
]  # fmt: skip

"""A size that is known only at run time stays one in the graph that is written: no number of the analysis takes its place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxprune
from tests.support.capturing import assert_equal
from tests.support.marks import but_slow
from tests.support.zeroed import with_zeros


class Joint(nn.Module):
    """Two sequences, [batch, x, 6] and [batch, y, 6], each through a layer of its own."""

    def __init__(self, function: Callable[..., Tensor | list[Tensor]]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 24), nn.Linear(6, 24), nn.Linear(24, 24)
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
        made = self.function(x, y, self.c(self.a(x).relu()), self.b(y).relu())
        return [value.sum(-1) for value in (made if isinstance(made, list) else [made])]


def joined(u: Tensor, v: Tensor) -> Tensor:
    return torch.cat([u, v], 1)


#: What is made of inputs x, y and their features u, v.
FORMS: dict[str, Callable[..., Any]] = {
    "split": lambda x, y, u, v: [*joined(u, v).split([x.shape[1], y.shape[1]], 1)],
    "split at an expression": lambda x, y, u, v: [*joined(u, v).split([x.shape[1] - 1, 1, y.shape[1]], 1)],
    "split at equal sizes": lambda x, y, u, v: [*joined(u, u).split(x.shape[1], 1), v],
    "chunk": lambda x, y, u, v: [*joined(u, u).chunk(2, 1), v],
    "narrow": lambda x, y, u, v: joined(u, v).narrow(1, x.shape[1], y.shape[1]),
    "pad": lambda x, y, u, v: F.pad(u, (0, 0, 0, y.shape[1])) + F.pad(v, (0, 0, x.shape[1], 0)),
    "expand": lambda x, y, u, v: u.mean(1, keepdim=True).expand(-1, y.shape[1], -1) * v,
    "repeat": lambda x, y, u, v: [u.repeat(1, y.shape[1], 1), v],
    "view": lambda x, y, u, v: [u.repeat(1, y.shape[1], 1).view(x.shape[0], y.shape[1], x.shape[1], -1).sum(1), v],
    "count": lambda x, y, u, v: u * torch.arange(x.shape[1])[:, None] + v.sum(1, keepdim=True) * y.shape[1],
    "zeros": lambda x, y, u, v: [torch.cat([u, u.new_zeros(x.shape[0], y.shape[1], 24)], 1), v],
    "norm": lambda x, y, u, v: [F.layer_norm(u.mT, (x.shape[1],)).mT, F.rms_norm(v.mT, (y.shape[1],)).mT],
    "best half": lambda x, y, u, v: [u.topk(x.shape[1] // 2, 1)[0], v],
    "channels between two sizes": lambda x, y, u, v: [
        (u.mT.reshape(-1) * torch.ones(x.shape[0], 24, x.shape[1], dtype=u.dtype).reshape(-1))
        .reshape(x.shape[0], 24, -1)
        .mT,
        v,
    ],
}

SIZES = ((4, 7, 5), (2, 9, 4), (3, 5, 8))


def inputs_of(sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    batch, x, y = sizes
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(batch, length, 6, dtype=torch.float64, generator=random) for length in (x, y))
    return a, b


def compiled(model: nn.Module, **options: Any) -> Any:
    call = {"forward_args": lambda batch: (tuple(batch), {}), "method": "l2", "recover": None, "progress": False}
    return fxprune.compile(model, [list(inputs_of(SIZES[0]))], 0.6, **call, **options)


def numbers(module: fx.GraphModule) -> Iterator[int]:
    for node in module.graph.nodes:
        found: list[Any] = []
        fx.node.map_aggregate((node.args, node.kwargs), found.append)
        yield from (value for value in found if isinstance(value, int))


@pytest.mark.parametrize("form", but_slow(FORMS, ("split", "norm")))
def test_run_time_sizes_stay(form: str) -> None:
    torch.manual_seed(0)
    model = Joint(FORMS[form]).double().eval()
    pruned = compiled(model, verify=False)
    assert max(numbers(pruned)) < 1000, "a prime of the analysis stands in the graph"
    zeroed = with_zeros(copy.deepcopy(model), pruned.plan.keep)
    others = {"split at equal sizes": SIZES[:2], "channels between two sizes": ((2, 7, 5),)}  # which hold the lengths
    for sizes in (SIZES[0], *others.get(form, SIZES)):
        assert_equal(pruned(*inputs_of(sizes)), zeroed(*inputs_of(sizes)))


@pytest.mark.parametrize("statistic", [lambda h: h.softmax(0), lambda h: h.var(0), lambda h: h.topk(3)[0]])
def test_a_statistic_over_channels_between_two_run_time_sizes_holds_them(statistic: Callable[[Tensor], Tensor]) -> None:
    model = Joint(lambda x, y, u, v: [statistic(u.mT.reshape(-1)), v]).double().eval()
    assert compiled(model).report.verified is True

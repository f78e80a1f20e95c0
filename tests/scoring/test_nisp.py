"""NISP: importance handed back through absolute weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxprune.capturing.inputs import PlainInputs
from fxprune.coupling.coupling import Coupling
from fxprune.scoring import score
from fxprune.scoring.engine.shares import layers_that, remaining_share
from fxprune.scoring.scorer import Context
from tests.models.fn import Fn
from tests.models.smooth import Attention
from tests.support.formulas import assert_same, built
from tests.support.pruning import linear_coupling, prepared
from tests.support.tensors import random


def _propagated(coupling: Coupling, raw: dict[str, Tensor]) -> dict[str, Tensor]:
    context = Context(coupling, PlainInputs(()))
    read, made = layers_that(context, read=True), layers_that(context, read=False)
    return remaining_share({k: v / v.sum() for k, v in raw.items()}, {k: read[k] + made[k] - 1 for k in raw})


@pytest.mark.parametrize("name", ["conv", "mlp"])
def test_nisp_propagates_through_absolute_weights(name: str) -> None:
    coupling, model, _, _ = built(name)
    last, middle = model.c.weight.detach().abs().sum(0), model.b.weight.detach().abs()
    b = last.reshape(5, -1).sum(1)
    a = torch.stack([sum(middle[o, i].sum() * b[o] for o in range(5)) for i in range(6)])  # type: ignore[misc]
    assert_same(score(coupling, [], "nisp"), _propagated(coupling, {"a": a, "b": b}))


def test_nisp_of_a_residual_channel_is_the_sum_over_its_readers() -> None:
    model = Fn(
        lambda m, x: m.d((h := m.a(x)) + m.c(m.b(h).relu())),
        a=nn.Linear(5, 6),
        b=nn.Linear(6, 4),
        c=nn.Linear(4, 6),
        d=nn.Linear(6, 3),
    )
    coupling = prepared(model, (random(4, 5),))[1]
    b, c, d = (layer.weight.detach().abs() for layer in (model.b, model.c, model.d))
    behind = d.sum(0)  # what c adds is read by d alone
    inner = c.T @ behind
    assert_same(score(coupling, [], "nisp"), _propagated(coupling, {"a": behind + b.T @ inner, "b": inner}))


class Stream(nn.Module):
    """Grouped, transposed and depthwise convolutions around a skip; linear, for sizes and kernels of one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 12, 1, groups=2, bias=False)
        self.c = nn.ConvTranspose2d(12, 8, 1, groups=4, bias=False)
        self.depth, self.up = nn.Conv2d(8, 8, 1, groups=8, bias=False), nn.Conv2d(8, 5, 1, bias=False)
        self.down, self.last = nn.ConvTranspose2d(5, 8, 1, bias=False), nn.Conv2d(8, 2, 1, bias=False)

    def forward(self, x: Tensor, read: Callable[[str, Tensor], Tensor] = lambda _, value: value) -> Tensor:
        x = self.b(read("a", self.a(x)))
        x = self.c(read("b", x))
        x = x + self.down(read("up", self.up(read("c", self.depth(read("c", x))))))
        return self.last(read("c", x))


def test_nisp_through_groups_transposed_and_depthwise_convolutions() -> None:
    model, x = Stream(), random(2, 3, 1, 1)
    coupling = prepared(model, (x,))[1]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()  # then the importance of what is read is the gradient of the outputs' sum
    reads: list[tuple[str, Tensor]] = []

    def read(maker: str, value: Tensor) -> Tensor:
        reads.append((maker, value * 1))
        return reads[-1][1]

    gradients = torch.autograd.grad(model(x[:1], read).sum(), [value for _, value in reads])
    labels = {a.tensor: a.labels for a in coupling.axes if a.makes and a.dim == 0}
    labels["c.weight"] = labels["depth.weight"]
    total = torch.zeros(len(coupling.channels), dtype=torch.float64)
    for (maker, _), gradient in zip(reads, gradients, strict=True):
        for row, value in zip(labels[f"{maker}.weight"], gradient.flatten(), strict=True):
            for label in row:
                total[label] += value
    raw = {g.name: total[coupling.units[g.units]] for g in coupling.groups}
    assert len(raw) >= 4 and all(value.min() > 0 for value in raw.values())
    assert_same(score(coupling, [], "nisp"), _propagated(coupling, raw))


def test_nisp_of_attention() -> None:
    coupling = prepared(Attention(), (random(2, 5, 8),))[1]
    weights = dict(coupling.captured.model.named_parameters())
    values = weights["out.weight"].detach().abs().T @ weights["head.weight"].detach().abs().sum(0)
    found = score(coupling, [], "nisp")
    (group,) = (g for g in coupling.groups if g.kind == "head")
    expected = _propagated(coupling, {group.name: values.reshape(2, 4).sum(1)})
    torch.testing.assert_close(found[group.name], expected[group.name])
    query, value = (g.name for g in coupling.groups if g.kind == "head_dim")
    expected = _propagated(coupling, {query: torch.ones(4).double(), value: values.reshape(2, 4).sum(0)})
    torch.testing.assert_close(found[value], expected[value])
    torch.testing.assert_close(found[query], expected[query])  # no weight reads them: they share their heads'


def test_nisp_does_not_overflow() -> None:
    coupling = linear_coupling(4, *[4] * 40, 2)
    with torch.no_grad():
        for parameter in coupling.captured.model.parameters():
            parameter.mul_(1e12)
    assert all(torch.isfinite(s).all() and s.min() > 0 for s in score(coupling, [], "nisp").values())

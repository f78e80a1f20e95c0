"""The gradient of every kept parameter is that of the original without the removed units."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fxprune
from tests.models.fn import Fn
from tests.models.ops import attention, contract, conv, elementwise, join, norm, positions, reduce, reshape
from tests.models.ops.case import Case
from tests.models.small import NETWORKS, example
from tests.support.gradients import assert_same, check_gradients, of_model
from tests.support.marks import but_slow
from tests.support.pruning import coupled, coupling_of, prepared

FAMILIES = (attention, contract, conv, elementwise, join, norm, positions, reduce, reshape)
CASES = [case for family in FAMILIES for case in family.CASES]


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    check_gradients(coupling_of(name), example(name))


@pytest.mark.parametrize("case", but_slow(CASES, CASES[::9]), ids=lambda case: case.name)
def test_ops(case: Case) -> None:
    coupling = coupled(case, free=False)
    if coupling.captured.folded or case.name == "RMS norm":
        pytest.skip("the tensor is another in the result; test_fuzz.py compares these")
    check_gradients(coupling, case.args(seed=1))


def siamese(m: Any, x: Tensor, y: Tensor) -> Tensor:
    a, b = m.e(x), m.e(y)
    return F.cosine_similarity(m.p(a), b.detach(), -1) + F.cosine_similarity(m.p(b), a.detach(), -1)


def without(m: Any, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        a = m.e(x)
    return m.p(a) + m.p(m.e(y))


def nested(m: Any, x: Tensor, y: Tensor) -> Tensor:
    a = m.e(x)
    with torch.no_grad():
        b = m.p(a).relu()
        with torch.enable_grad():
            c = m.p(b)
        d = c.exp() + a
    return c + d * m.p(m.e(y))


def views(m: Any, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        a, b = m.e(x).chunk(2, -1)
    return m.p(torch.cat([b, a], -1)) + m.p(m.e(y))


def weight(m: Any, x: Tensor, y: Tensor) -> Tensor:
    return m.p(m.e(x)) + F.linear(m.e(y), m.p[0].weight.detach())[:, :8]


def inference(m: Any, x: Tensor, y: Tensor) -> Tensor:
    with torch.inference_mode():
        a = m.e(x).sigmoid().mean()
    return m.p(m.e(y)) + a


def recomputed(m: Any, x: Tensor, y: Tensor) -> Tensor:
    return checkpoint(m.p, m.e(x), use_reentrant=False) + m.e(y)


def recomputed_in_one_go(m: Any, x: Tensor, y: Tensor) -> Tensor:
    return checkpoint(m.p, m.e(x), use_reentrant=True) + m.e(y)


def changed_without(m: Any, x: Tensor, y: Tensor) -> Tensor:
    a = m.p(m.e(x))
    with torch.no_grad():
        a.mul_(2)
        a[..., :4].add_(m.e(y)[..., :4])
    return a * m.e(y)


def changed_behind(m: Any, x: Tensor, y: Tensor) -> Tensor:
    a, b = m.p(m.e(x)), m.p(m.e(y))
    a.detach().clamp_(max=0.1)
    b.detach()[..., 2:5].mul_(3)
    return a + b


def changed_in_front(m: Any, x: Tensor, y: Tensor) -> Tensor:
    a = m.p(m.e(x))
    before = a.detach()
    a = a.mul_(2)
    before.add_(1)
    return a + 1 + before * m.e(y)


def made_without(m: Any, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        a = torch.zeros(x.shape[0], 8, dtype=x.dtype)
        a.copy_(m.e(x) * 2)
        a.relu_()
    return m.p(m.e(y)) * a


def stopped_later(m: Any, x: Tensor, y: Tensor) -> Tensor:
    a = m.e(x) + 1
    a.detach_()
    return m.p(m.e(y)) * a


def switched_off(m: Any, x: Tensor, y: Tensor) -> Tensor:
    torch.set_grad_enabled(False)
    a = m.e(x) * 3
    torch.set_grad_enabled(True)
    return m.p(m.e(y)) + a


def nothing_with_a_gradient(m: Any, x: Tensor, y: Tensor) -> Tensor:
    a = m.p(m.e(x))
    return a.round().detach() + (a - a.detach()) + m.e(y)


STOPS = (siamese, without, nested, views, weight, inference, recomputed, recomputed_in_one_go)
CHANGES = (changed_without, changed_behind, changed_in_front, made_without, stopped_later)
STOPS += (*CHANGES, switched_off, nothing_with_a_gradient)


@pytest.mark.parametrize("forward", STOPS, ids=lambda forward: forward.__name__)
def test_where_gradients_stop_they_stop(forward: Any) -> None:
    layers = {"e": nn.Linear(6, 8), "p": nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))}
    inputs = tuple(torch.randn(5, 6, dtype=torch.float64) for _ in range(2))
    coupling = prepared(Fn(forward, **layers), inputs, dynamic_shapes={})[1]
    assert coupling.groups
    assert coupling.captured.notes == ()
    check_gradients(coupling, inputs)


def test_a_frozen_parameter_stays_frozen() -> None:
    model = Fn(siamese, e=nn.Linear(6, 8), p=nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)))
    model.e.requires_grad_(False)
    inputs = tuple(torch.randn(5, 6, dtype=torch.float64) for _ in range(2))
    check_gradients(prepared(model, inputs)[1], inputs)


class Renormed(nn.Module):
    """Keeps its vectors short each time that they are looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.p = nn.Embedding(10, 6, max_norm=1.0), nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))

    def forward(self, i: Tensor) -> Tensor:
        return self.p(self.e(i))


def clipped(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.p[0].weight.clamp_(-0.1, 0.1)
    return m.p(m.e(x))


WRITING: dict[str, Any] = {
    "embedding": (Renormed, lambda: torch.randint(10, (4, 7)), "e.weight"),
    "clipped": (
        lambda: Fn(clipped, e=nn.Linear(6, 8), p=nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))),
        lambda: torch.randn(5, 6, dtype=torch.float64),
        "p.0.weight",
    ),
}


@pytest.mark.parametrize("kind", WRITING)
def test_a_parameter_that_forward_writes_to_learns_as_it_did(kind: str) -> None:
    build, example, name = WRITING[kind]
    torch.manual_seed(0)
    model, given = build().double().eval(), example()
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    with pytest.warns(fxprune.TrainingWarning, match=f"writes to '{name}'"):
        pruned = fxprune.compile(model, [given], ratios={"default": 0.0}, recover=None, progress=False)
    assert all(torch.equal(before[key], parameter) for key, parameter in model.named_parameters())
    gradients = of_model(pruned, (given,))
    assert gradients[name] is not None
    assert_same(of_model(model, (given,)), gradients)

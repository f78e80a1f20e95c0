"""The gradient of every kept parameter is that of the original without the removed units."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.models.fn import Fn
from tests.models.ops import attention, contract, conv, elementwise, join, norm, positions, reduce, reshape
from tests.models.ops.case import Case
from tests.models.small import NETWORKS, example
from tests.support.gradients import check_gradients
from tests.support.marks import but_slow
from tests.support.pruning import coupled, coupling_of, prepared

FAMILIES = (attention, contract, conv, elementwise, join, norm, positions, reduce, reshape)
CASES = [case for family in FAMILIES for case in family.CASES]


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    check_gradients(coupling_of(name), example(name))


@pytest.mark.parametrize("case", but_slow(CASES, CASES[::9]), ids=lambda case: case.name)
def test_ops(case: Case) -> None:
    coupling = coupled(case)
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


STOPS = (siamese, without, nested, views, weight, inference, recomputed, recomputed_in_one_go)


@pytest.mark.parametrize("forward", STOPS, ids=lambda forward: forward.__name__)
def test_where_gradients_stop_they_stop(forward: Any) -> None:
    layers = {"e": nn.Linear(6, 8), "p": nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))}
    inputs = tuple(torch.randn(5, 6, dtype=torch.float64) for _ in range(2))
    coupling = prepared(Fn(forward, **layers), inputs)[1]
    assert coupling.groups
    assert coupling.captured.notes == ()
    check_gradients(coupling, inputs)


def test_a_frozen_parameter_stays_frozen() -> None:
    model = Fn(siamese, e=nn.Linear(6, 8), p=nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)))
    model.e.requires_grad_(False)
    inputs = tuple(torch.randn(5, 6, dtype=torch.float64) for _ in range(2))
    check_gradients(prepared(model, inputs)[1], inputs)

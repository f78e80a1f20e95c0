"""What the masked twin computes: statistics and attention over what is kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.coupling.selection import Selection
from fxprune.rewriting.emission import emit
from fxprune.rewriting.slicing import keep_indices, slice_graph
from fxprune.twin.interpreter import Run
from tests.models.fn import Fn
from tests.support.certificates import WIDTH, Compiled, compiled, layers
from tests.support.pruning import prepared
from tests.support.tensors import random

A = torch.ops.aten


def kept(case: Compiled) -> Tensor:
    return torch.from_numpy(keep_indices(Selection(case.coupling, case.removed))["a.weight"][0])


# -- statistics over what is kept --------------------------------------------------------------------------------------


#: Of y [batch, channels].
STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "layer norm": lambda y: F.layer_norm(y, y.shape[-1:]),
    "RMS norm": lambda y: F.rms_norm(y, y.shape[-1:]),
    "RMS norm by hand": lambda y: y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6),
    "group norm": lambda y: F.group_norm(y, 3),
    "mean": lambda y: y - y.mean(-1, keepdim=True),
    "sum": lambda y: y * y.sum(-1, keepdim=True),
    "std": lambda y: y / y.std(-1, keepdim=True),
    "var": lambda y: y * y.var(-1, correction=0, keepdim=True),
    "largest": lambda y: y * (-y.square()).amax(-1, keepdim=True),
    "smallest": lambda y: y * y.square().amin(-1, keepdim=True),
    "product": lambda y: y * y.prod(-1, keepdim=True),
    "norm": lambda y: y / torch.linalg.vector_norm(y, dim=-1, keepdim=True),
    "logsumexp": lambda y: y - y.logsumexp(-1, keepdim=True),
}


#: Those that count what goes as zeros.
COUNT_ZEROS = ("RMS norm", "RMS norm by hand", "mean", "std", "var")


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_run_over_what_is_kept_or_count_zeros(name: str) -> None:
    statistic = STATISTICS[name]
    case = layers(lambda m, y: m.b(statistic(y)), units=3 if name == "group norm" else None)
    assert case.coupling.statistics
    weights = {n: case.original(n) for n in ("a.weight", "a.bias", "b.weight", "b.bias")}
    y, here = F.linear(case.args[0], weights["a.weight"], weights["a.bias"]), kept(case)
    (twin,) = Run(Selection(case.coupling, case.removed))(case.args)
    over = F.linear(statistic(y[:, here]), weights["b.weight"][:, here], weights["b.bias"])
    zeroed = torch.zeros_like(y).index_copy(1, here, y[:, here])
    zeroed = torch.zeros_like(y).index_copy(1, here, statistic(zeroed)[:, here])
    counted = F.linear(zeroed, weights["b.weight"], weights["b.bias"])
    right = counted if name in COUNT_ZEROS else over
    torch.testing.assert_close(twin, right, rtol=1e-12, atol=1e-12)
    assert case.certificate().verified is True
    assert torch.allclose(counted, over) == (name in ("sum", "norm")), "zeros are not the same as absence"


def test_zeroed_weights_are_not_the_twin() -> None:
    # batch norm gives beta for a channel of zeros, and sigmoid makes a half of a zero: both reach the next layer
    case = layers(lambda m, y: m.b(m.n(y).sigmoid()), n=nn.BatchNorm1d(WIDTH))
    model, gone = case.coupling.captured.model, np.setdiff1d(np.arange(WIDTH), kept(case))
    (x,) = case.args
    with torch.no_grad():
        pruned = case.module(x)
        torch.testing.assert_close(Run(Selection(case.coupling, case.removed))([x])[0], pruned)
        for names in (["a.weight", "a.bias"], ["n.weight", "n.bias"]):
            for tensor in map(model.get_parameter, names):
                tensor[gone] = 0
            assert not torch.allclose(model(x), pruned, rtol=1e-2)
        assert torch.equal(model.n(model.a(x)).sigmoid()[:, gone], torch.full((6, len(gone)), 0.5).double())
        model.b.weight[:, gone] = 0
        torch.testing.assert_close(model(x), pruned)


def test_an_operand_given_twice_is_masked_once_and_sums_stay_right() -> None:
    case = layers(
        lambda m, y: torch.einsum("bi,bi->b", y, y)[:, None] + m.b(y @ m.w), w=nn.Parameter(torch.randn(12, 12))
    )
    assert case.certificate().verified is True


# -- attention ---------------------------------------------------------------------------------------------------------


def _attention(m: Any, x: Tensor) -> Tensor:
    q, k, v = (f(x).unflatten(-1, (2, 6)).transpose(1, 2) for f in (m.q, m.k, m.v))
    return m.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_attention_keeps_the_scale_of_its_full_width() -> None:
    torch.manual_seed(0)
    parts = {name: nn.Linear(5, 12) for name in "qkv"} | {"o": nn.Linear(12, 3)}
    coupling = prepared(Fn(_attention, **parts), (random(4, 7, 5),))[1]
    inner = next(g for g in coupling.groups if g.kind == "head_dim" and "q" in g.producers)
    case = compiled(coupling, (random(4, 7, 5, seed=1),), coupling.removed_mask(inner.units[:3]))
    assert case.module.get_submodule("q").weight.shape == (6, 5)
    node = next(n for n in case.module.graph.nodes if "scaled_dot_product_attention" in str(n.target))
    assert node.kwargs["scale"] == pytest.approx(1 / math.sqrt(6))
    assert case.certificate().verified is True
    for wrong in (None, 1 / math.sqrt(3)):
        node.kwargs = {**node.kwargs, "scale": wrong}
        case.module.recompile()
        assert case.certificate().verified is False


# -- several outputs, and of other kinds -------------------------------------------------------------------------------


def test_the_sliced_graph_and_the_emitted_module_are_both_checked() -> None:
    case = layers(lambda m, y: m.b(y.relu()))
    sliced = slice_graph(Selection(case.coupling, case.removed))
    assert case.certificate(sliced).verified is True
    assert case.certificate(emit(case.coupling.captured, sliced)).verified is True

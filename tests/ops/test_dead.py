"""Which channels are zero for every input, whatever op is between the weights and the norm."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import fxprune
from fxprune.capturing.captured import capture
from fxprune.ops.dead import dead_channels
from tests.models.fn import Fn
from tests.support.marks import but_slow
from tests.support.tensors import random

AT = torch.tensor([0, 2, 1, 2])

#: From ``y[2, 4, 6]``, of whose last dimension the channels 1 and 4 are zero, to a value where these are, and no others.
STILL: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "as it is": lambda m, y: y,
    "relu": lambda m, y: y.relu(),
    "index_add": lambda m, y: y.index_add(1, AT, y),
    "index_copy": lambda m, y: y.index_copy(1, AT[:2], y[:, :2]),
    "scatter_add": lambda m, y: y.scatter_add(1, AT.view(1, 4, 1).expand_as(y), y),
    "gather": lambda m, y: y.gather(1, AT.view(1, 4, 1).expand_as(y)),
    "where": lambda m, y: torch.where(y > 0, y, y * 0.1),
    "masked_fill": lambda m, y: y.masked_fill(y > 1, 0.0),
    "cat": lambda m, y: torch.cat([y, y.relu()], 1),
    "stack": lambda m, y: torch.stack([y, y.tanh()], 2),
    "cumsum": lambda m, y: y.cumsum(1),
    "matmul": lambda m, y: m.mix @ y,
    "gate": lambda m, y: y * m.gate(y).sigmoid(),
    "fourier": lambda m, y: torch.fft.fft(y, dim=1).real,
    "depthwise": lambda m, y: m.conv(y.transpose(1, 2)).transpose(1, 2),
    "pool": lambda m, y: F.avg_pool1d(y.transpose(1, 2), 2).transpose(1, 2),
    "resize": lambda m, y: F.interpolate(y.transpose(1, 2), scale_factor=2).transpose(1, 2),
    "prelu": lambda m, y: F.prelu(y.transpose(1, 2), m.slope).transpose(1, 2),
    "batch norm": lambda m, y: m.norm(y.transpose(1, 2)).transpose(1, 2),
    "normalize": lambda m, y: F.normalize(y, dim=-1),
    "attention": lambda m, y: F.scaled_dot_product_attention(y + 1, y - 1, y),
    "heads": lambda m, y: y.unflatten(-1, (2, 3)).flip(2).flip(2).flatten(-2),
    "what cancels": lambda m, y: y.exp() - 1,
    "shifted softplus": lambda m, y: F.softplus(y) - math.log(2.0),
    "mish": lambda m, y: y * torch.tanh(torch.log(1 + torch.exp(y))),
    "a causal mean": lambda m, y: m.scores.masked_fill(m.later, -torch.inf).softmax(-1) @ y,
    "bfloat16": lambda m, y: y.bfloat16().to(y.dtype),
    "a mask": lambda m, y: m.gate(y) * m.mask,
    "a bound": lambda m, y: torch.minimum(m.gate(y), m.bound).relu(),
    "a norm": lambda m, y: F.layer_norm(m.gate(y), (6,), m.mask),
    "another layer": lambda m, y: m.last(m.gate(y).tanh()),
    "a faint layer": lambda m, y: m.faint(m.gate(y)).relu(),
    "a faint scale": lambda m, y: m.scale(m.gate(y).transpose(1, 2)).relu().transpose(1, 2),
    "infinities": lambda m, y: (m.gate(y) + m.barrier).exp(),
    "large numbers": lambda m, y: (m.gate(y) + m.barrier.clamp_min(-1e300)).relu(),
}
#: To values of which no channel is zero for every input, though some are for many.
NONE: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "sigmoid": lambda m, y: y.sigmoid(),
    "softmax": lambda m, y: y.softmax(-1),
    "bias": lambda m, y: y + m.slope,
    "centred": lambda m, y: y - y.mean(-1, keepdim=True),
    "linear": lambda m, y: m.gate(y),
    "one position": lambda m, y: (y[:1, 0] + m.slope).relu(),
}


def fn(between: Callable[[nn.Module, Tensor], Tensor]) -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Conv1d(6, 6, 3, padding=1, groups=6, bias=False)
    slope = nn.Parameter(torch.rand(6) + 0.5)
    parts = {"gate": nn.Linear(6, 6), "conv": conv, "slope": slope, "norm": nn.BatchNorm1d(6), "mix": torch.rand(5, 4)}
    parts |= {"scores": torch.rand(4, 4), "later": torch.ones(4, 4).triu(1).bool(), "last": nn.Linear(6, 6)}
    parts |= {"mask": torch.rand(6) + 0.5, "bound": torch.full((6,), 9.0), "barrier": torch.zeros(6)}
    parts |= {"faint": nn.Linear(6, 6), "scale": nn.BatchNorm1d(6)}
    model = Fn(lambda m, x: between(m, m.a(x)), a=nn.Linear(3, 6), **parts)
    with torch.no_grad():
        for tensor in (model.a.weight, model.a.bias, model.last.weight, model.last.bias, model.mask):
            tensor[[1, 4]] = 0
        model.bound[[1, 4]], model.barrier[[1, 4]] = -9, -torch.inf
        for layer in (model.faint, model.scale):
            layer.weight[[1, 4]], layer.bias[[1, 4]] = 1e-30, -1
    return model.double().eval()


def flags(model: nn.Module, *inputs: Tensor) -> dict[int, list[int]]:
    """Returns the dead channels of what a model returns: dimension -> which."""
    captured = capture(model, inputs)
    (result,) = captured.module.graph.output_node().args[0]
    assert isinstance(result, fx.Node)
    found = dead_channels(captured, {result}).get(result, {})
    return {dim: dead.nonzero().flatten().tolist() for dim, dead in found.items()}


@pytest.mark.parametrize("between", STILL)
def test_ops_keep_channels_dead(between: str) -> None:
    model, x = fn(STILL[between]), random(2, 4, 3)
    rank = model(x).dim()
    assert flags(model, x) == {rank - 1: [1, 4]}


@pytest.mark.parametrize("between", NONE)
def test_ops_make_something_of_zeros(between: str) -> None:
    assert flags(fn(NONE[between]), random(2, 4, 3)) == {}


def test_channels_join_others() -> None:
    model = fn(lambda m, y: torch.cat([m.gate(y), y], -1))
    assert flags(model, random(2, 4, 3)) == {2: [7, 10]}
    half = fn(lambda m, y: y.unflatten(-1, (2, 3)))  # of each half another one: none of either dimension
    assert flags(half, random(2, 4, 3)) == {3: [1]}


def test_what_is_taken_from_itself_is_zero() -> None:
    model = fn(lambda m, y: torch.cat([m.gate(y) - m.gate(y), (z := m.gate(y)), z - z], -1))
    assert flags(model, random(2, 4, 3)) == {2: [12, 13, 14, 15, 16, 17]}  # twice the layer is not known to be the same


class _Layers(TorchDispatchMode):
    """Counts layers that are computed."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        work = func in (torch.ops.aten.addmm.default, torch.ops.aten.convolution.default)
        self.count += work and not args[0].is_meta
        return func(*args, **kwargs or {})


def test_layers_that_lose_nothing_are_not_computed() -> None:
    layers = nn.Sequential(*(part for _ in range(4) for part in (nn.Linear(6, 6), nn.GELU(), nn.LayerNorm(6))))
    first = nn.Linear(6, 6)
    tokens = Fn(
        lambda m, x: m.first(torch.cat([m.token.expand(2, 1, 6), x], 1)), first=first, token=torch.zeros(1, 1, 6)
    )
    model = nn.Sequential(tokens, Fn(lambda m, y: y + y.mean(1, keepdim=True)), layers)
    captured = capture(model.eval(), (random(2, 4, 6).float(),))
    norms = [node for node in captured.module.graph.nodes if node.target is torch.ops.aten.layer_norm.default]
    with _Layers() as layers_run:
        assert dead_channels(captured, norms) == {}
    assert layers_run.count == 4  # the draws of the first, which reads a token of zeros


def test_a_recurrent_layer_whose_unit_is_zero() -> None:
    torch.manual_seed(0)
    model = Fn(lambda m, x: m.lstm(x)[0], lstm=nn.LSTM(3, 5, batch_first=True)).double().eval()
    with torch.no_grad():
        for name, tensor in model.lstm.named_parameters():
            tensor.view(4, 5, *tensor.shape[1:])[:, 2] = 0
            assert name.endswith("l0")
    assert flags(model, random(2, 4, 3)) == {2: [2]}


def test_the_rows_of_a_table_are_no_channels() -> None:
    torch.manual_seed(0)
    model = Fn(lambda m, x: m.table(x), table=nn.Embedding(9, 5, padding_idx=0)).eval()
    assert flags(model, torch.zeros(2, 4, dtype=torch.long)) == {}


def test_nothing_is_changed_and_nothing_is_drawn_from_the_users_numbers() -> None:
    model, x = fn(STILL["batch norm"]), random(2, 4, 3)
    captured, before = capture(model, (x,)), copy.deepcopy(model.state_dict())
    (result,) = captured.module.graph.output_node().args[0]
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert dead_channels(captured, {result})
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


REFUSING: dict[str, tuple[Callable[..., Tensor], Tensor]] = {
    "cholesky": (lambda m, x, z: m.a(x @ torch.linalg.cholesky(z)), torch.eye(3)),
    "multinomial": (lambda m, x, z: m.a(x[:, z.multinomial(3)[0]]), torch.ones(1, 4)),
}


@pytest.mark.parametrize("op", REFUSING)
def test_an_op_that_takes_no_such_numbers_does_not_end_the_search(op: str) -> None:
    model = fn(lambda m, y: y)
    model.function, z = REFUSING[op]
    assert flags(model, random(2, 4, 3), z.double()) == {2: [1, 4]}


def test_dead_positions_beside_a_group_norm() -> None:
    """Zeros along another dimension than the channels' are none of its business, whatever their number."""
    torch.manual_seed(0)
    model = Fn(
        lambda m, x: m.b(m.norm(m.a(x.transpose(1, 2)).transpose(1, 2) * m.mask).transpose(1, 2)),
        a=nn.Linear(3, 8),
        norm=nn.GroupNorm(4, 8),
        b=nn.Linear(8, 2),
        mask=torch.tensor([1.0, 0, 1, 1, 1, 1]),
    )
    pruned = fxprune.compile(model.eval(), [random(2, 3, 6).float()], ratios=0.5, recover=None, progress=False)
    assert fxprune.report(pruned).verified


@pytest.mark.parametrize("between", but_slow(("index_add", "depthwise", "heads", "attention"), quick=("index_add",)))
def test_a_norm_behind_any_op_loses_channels_without_a_trace(between: str) -> None:
    model = fn(lambda m, y: m.after(STILL[between](m, y)))
    width = model.a(random(2, 4, 3)).shape[-1]
    model.after = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2)).double()
    with torch.no_grad():
        for tensor in (model.after[0].weight, model.after[0].bias, model.conv.weight):  # to go first
            tensor[[1, 4]] = 0
    pruned = fxprune.compile(
        model.eval(), [random(2, 4, 3)], ratios={"a": 0.34, "default": 0.0}, method="l2", recover=None, progress=False
    )
    x = random(2, 4, 3, seed=1)
    assert pruned.get_parameter("a.weight").shape[0] == 4
    torch.testing.assert_close(pruned(x), model(x), rtol=1e-6, atol=1e-7)

"""Coupling: which units there are, what they are called, why the rest stays, and that each may go by itself."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune._base.errors import UnsupportedOpError
from fxprune.algebra import axes as ax
from fxprune.budget.cost import cost_model
from fxprune.budget.solver import solve
from fxprune.capturing.captured import capture
from fxprune.compiler.by_hand import verify
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.interpreter import couple
from fxprune.coupling.selection import Selection
from fxprune.coupling.units import Group
from fxprune.rewriting.slicing import slice_graph
from tests.models import small
from tests.models.blocks_tokens import Attention, Position
from tests.models.fn import Fn
from tests.models.networks import Network
from tests.support.fuzzing import Case, Pruning, run
from tests.support.marks import but_slow
from tests.support.pruning import certify, prepared

Args = tuple[Tensor, ...]
ROW, TOKENS, IMAGE = (3, 5), (3, 7, 5), (3, 3, 4, 4)


def _inputs(*shapes: tuple[int, ...]) -> Callable[[int], Args]:
    """Returns what draws inputs of these shapes from a seed."""

    def draw(seed: int) -> Args:
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)

    return draw


def _fused(m: Any, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).view(x.shape[0], -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
    return m.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _expanded(m: Any, x: Tensor) -> Tensor:
    """Four query heads on two groups of keys and values, each repeated by ``expand``."""
    b, n, _ = x.shape
    q = m.q(x).view(b, n, 4, 3).transpose(1, 2)
    k, v = (f(x).view(b, n, 2, 1, 3).expand(-1, -1, -1, 2, -1).reshape(b, n, 4, 3) for f in (m.k, m.v))
    y = F.scaled_dot_product_attention(q, k.transpose(1, 2), v.transpose(1, 2))
    return m.o(y.transpose(1, 2).flatten(2))


def _scaled_twice(m: Any, x: Tensor) -> Tensor:
    table = torch.linspace(1, 2, 6, dtype=x.dtype)  # one constant, read by two layers that do not meet
    return m.c(m.a(x) * table) + m.d(m.b(x) * table)


def _linear(**widths: tuple[int, int]) -> dict[str, nn.Module]:
    return {name: nn.Linear(*width) for name, width in widths.items()}


def _conv(**widths: tuple[int, int]) -> dict[str, nn.Module]:
    return {name: nn.Conv2d(*width, 1) for name, width in widths.items()}


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Args]]] = {
    **{name: (build, lambda seed, draw=draw: draw(seed=seed)) for name, (build, draw) in small.NETWORKS.items()},
    "two layers": (lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)), _inputs(ROW)),
    "fused qkv": (lambda: Fn(_fused, **_linear(qkv=(5, 24), o=(8, 3))), _inputs(TOKENS)),
    "expanded keys": (lambda: Fn(_expanded, **_linear(q=(5, 12), k=(5, 6), v=(5, 6), o=(12, 3))), _inputs(TOKENS)),
    "two paths": (
        lambda: Fn(
            lambda m, x, y: m.b(m.a(x).relu() + m.a(y).sigmoid()) + m.c(m.b(m.a(x - y)).relu()),
            **_linear(a=(5, 6), b=(6, 4), c=(4, 4)),
        ),
        _inputs(ROW, ROW),
    ),
    "a layer on its own result": (
        lambda: Fn(lambda m, x: m.c(m.b(m.b(m.a(x)).relu()).relu()), **_linear(a=(5, 6), b=(6, 6), c=(6, 2))),
        _inputs(ROW),
    ),
    "a weight read both ways": (
        lambda: Fn(lambda m, x: m.b(m.a(x).relu() @ m.a.weight), **_linear(a=(5, 6), b=(5, 2))),
        _inputs(ROW),
    ),
    "a constant between two layers": (
        lambda: Fn(_scaled_twice, **_linear(a=(5, 6), b=(5, 6), c=(6, 2), d=(6, 2))),
        _inputs(ROW),
    ),
    "a buffer between two layers": (
        lambda: Fn(
            lambda m, x: m.c(m.a(x) * m.t) + m.d(m.b(x) * m.t),
            t=torch.rand(6),
            **_linear(a=(5, 6), b=(5, 6), c=(6, 2), d=(6, 2)),
        ),
        _inputs(ROW),
    ),
    "an outer product": (
        lambda: Fn(
            lambda m, x: m.c((m.a(x).unsqueeze(2) * m.b(x).unsqueeze(1)).flatten(1)),
            **_linear(a=(5, 4), b=(5, 3), c=(12, 2)),
        ),
        _inputs(ROW),
    ),
    "dense": (
        lambda: Fn(
            lambda m, x: m.c(torch.cat([m.a(x).relu(), m.b(m.a(x)).relu()], 1)), **_conv(a=(3, 4), b=(4, 6), c=(10, 2))
        ),
        _inputs(IMAGE),
    ),
    "a gated half": (lambda: Fn(lambda m, x: m.b(F.glu(m.a(x))), **_linear(a=(5, 8), b=(4, 2))), _inputs(ROW)),
    "a square view": (
        lambda: Fn(lambda m, x: m.b(m.a(x).unflatten(1, (3, 3)).sin().flatten(1)), **_linear(a=(5, 9), b=(9, 2))),
        _inputs(ROW),
    ),
    "two channels are a result": (
        lambda: Fn(lambda m, x: (m.b((y := m.a(x)).relu()), y[:, 1:3]), **_linear(a=(5, 6), b=(6, 2))),
        _inputs(ROW),
    ),
    "flatten": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 2)),
        _inputs(IMAGE),
    ),
    "an op without a rule": (
        lambda: Fn(
            lambda m, x: m.c(m.b(torch.linalg.matrix_exp(m.a(x))).relu()), **_linear(a=(7, 7), b=(7, 4), c=(4, 2))
        ),
        _inputs((3, 7, 7)),
    ),
    "nothing to prune": (lambda: nn.Linear(5, 5), _inputs(ROW)),
}


@functools.cache
def _coupling(name: str) -> Coupling:
    build, draw = NETWORKS[name]
    torch.manual_seed(0)
    return prepared(build(), draw(0))[1]


def _line(group: Group) -> str:
    made, read = (" ".join(layers) or "-" for layers in (group.producers, group.consumers))
    return f"{group.name}: {len(group.units)} {group.kind}, {made} > {read}"


# -- groups -------------------------------------------------------------------------------------------------------


GROUPS = {
    "residual": [
        "stem.0: 12 channel, stem.0 stem.1 one.3 two.4 two.5 gate.3 > one.0 two.0 gate.1 head",
        "one.0: 8 channel, one.0 one.1 > one.3",
        "two.0: 4 channel, two.0 > two.2",
        "gate.1: 6 channel, gate.1 > gate.3",
        "two.0#2: 4 channel, two.0 two.2 > two.4",
        "two.2: 4 channel, two.2 > two.4",
    ],
    "two layers": ["0: 6 channel, 0 > 2"],
    "fused qkv": [
        "qkv:head: 2 head, qkv > o",
        "qkv:head_dim: 4 head_dim, qkv > -",
        "qkv:head_dim#2: 4 head_dim, qkv > o",
    ],
    "expanded keys": [
        "q:head_dim: 3 head_dim, q k > -",
        "q:kv_group: 2 kv_group, q k v > o",
        "q:head: 2 head, q > o",
        "v:head_dim: 3 head_dim, v > o",
    ],
    "two paths": ["a: 6 channel, a > b"],
    "a layer on its own result": ["a: 6 channel, a b > b c"],
    "a weight read both ways": ["a: 6 channel, a > a"],
    "a constant between two layers": ["a: 6 channel, a > c", "b: 6 channel, b > d"],
    "a buffer between two layers": ["a: 6 channel, a b > c d"],
    "an outer product": ["a: 4 channel, a > c", "b: 3 channel, b > c"],
    "dense": ["a: 4 channel, a > b c", "b: 6 channel, b > c"],
    "a gated half": ["a: 4 channel, a > b"],
    "a square view": ["a: 3 channel, a > b", "a#2: 3 channel, a > b"],
    "two channels are a result": ["a: 4 channel, a > b"],
    "flatten": ["0: 6 channel, 0 > 3"],
    "an op without a rule": ["b: 4 channel, b > c"],
    "nothing to prune": [],
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups(name: str) -> None:
    assert list(map(_line, _coupling(name).groups)) == GROUPS[name]


@pytest.mark.slow
def test_the_residual_stream_of_a_tied_transformer() -> None:
    stream = next(g for g in _coupling("transformer").groups if g.kind == "channel" and len(g.units) == 12)
    blocks = [f"blocks.{i}" for i in range(2)]
    assert set(stream.producers) == {f"{b}.{n}" for b in blocks for n in ("n1", "n2", "o", "down")} | {"norm"}
    assert set(stream.consumers) == {"embedding"} | {f"{b}.{n}" for b in blocks for n in ("q", "k", "v", "up", "gate")}


def _coordinates(coupling: Coupling, unit: int) -> dict[int, set[int]]:
    """Returns the coordinates of a unit on each axis that has any."""
    channel = coupling.units[unit]
    rows = {i: set(np.flatnonzero((a.labels == channel).any(axis=1))) for i, a in enumerate(coupling.axes)}
    return {i: found for i, found in rows.items() if found}


@pytest.mark.parametrize("name", NETWORKS)
def test_units_of_a_group_are_alike_and_apart(name: str) -> None:
    coupling = _coupling(name)
    assert sorted(u for g in coupling.groups for u in g.units) == list(range(len(coupling.units)))
    assert len({g.name for g in coupling.groups}) == len(coupling.groups)
    for group in coupling.groups:
        on = [_coordinates(coupling, unit) for unit in group.units]
        assert all({i: len(rows) for i, rows in found.items()} == dict(group.axes) for found in on)
        for index, count in group.axes:
            assert len(set.union(*(found[index] for found in on))) == count * len(on)
        kinds = {int(k) for k in coupling.channels.kinds()[coupling.units[group.units]]}
        marked = "head" if group.kind == "kv_group" else group.kind
        assert kinds == {("channel", "head_dim", "head").index(marked)}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_coordinate_has_a_unit_or_a_reason(name: str) -> None:
    coupling = _coupling(name)
    assert set(Counter((a.tensor, a.dim) for a in coupling.axes).values()) == {1}  # ties are one tensor
    frozen = {(f.tensor, f.dim): (f.coordinates, f.size) for f in coupling.frozen()}
    for axis in coupling.axes:
        held = int((~np.isin(axis.labels, coupling.units).any(axis=1)).sum())
        kernel = axis.dim > 1 and (axis.tensor, axis.dim) not in frozen  # that it stays is nothing to tell
        assert frozen.get((axis.tensor, axis.dim), (0, 0)) == ((held, len(axis.labels)) if held else (0, 0)) or kernel


# -- frozen, explain, text, graph ---------------------------------------------------------------------------------


FROZEN = {
    "two layers": [
        "0.weight[1] 5/5: aten.linear.default in 0 on the input input_1",
        "2.weight[0] 2/2: the result of output",
        "2.bias[0] 2/2: the result of output",
    ],
    "transformer": ["embedding.weight[0] 11/11: the rows of aten.embedding.default in embedding on the input ids"],
    "a weight read both ways": [
        "a.weight[1] 5/5: aten.linear.default in a on the input args_0",
        "b.weight[0] 2/2: the result of output",
        "b.weight[1] 5/5: aten.linear.default in a on the input args_0",
        "b.bias[0] 2/2: the result of output",
    ],
    "two channels are a result": [
        "a.weight[0] 2/6: the result of output",
        "a.weight[1] 5/5: aten.linear.default in a on the input args_0",
        "a.bias[0] 2/6: the result of output",
        "b.weight[0] 2/2: the result of output",
        "b.weight[1] 2/6: the result of output",
        "b.bias[0] 2/2: the result of output",
    ],
}


@pytest.mark.parametrize("name", FROZEN)
def test_frozen(name: str) -> None:
    lines = [f"{f.tensor}[{f.dim}] {f.coordinates}/{f.size}: {f.reason}" for f in _coupling(name).frozen()]
    assert lines == FROZEN[name]


EXPLAINED = {
    ("residual", "two.2"): """\
two.2.weight axis 0 (16)
  4 units of two.0#2: made by two.0, two.2; read by two.4
  4 units of two.2: made by two.2; read by two.4
two.2.weight axis 1 (4)
  4 units of two.0: made by two.0; read by two.2
two.2.weight axis 2 (3)
  no units: all of it stays
two.2.weight axis 3 (3)
  no units: all of it stays
two.2.bias axis 0 (16)
  4 units of two.0#2: made by two.0, two.2; read by two.4
  4 units of two.2: made by two.2; read by two.4""",
    ("fused qkv", "qkv.weight"): """\
qkv.weight axis 0 (24)
  2 units of qkv:head: made by qkv; read by o
  4 units of qkv:head_dim: made by qkv; read by -
  4 units of qkv:head_dim#2: made by qkv; read by o
qkv.weight axis 1 (5)
  5 of 5 frozen: aten.linear.default in qkv on the input args_0""",
    ("an op without a rule", "a"): """\
a.weight axis 0 (7)
  7 of 7 frozen: an op without a rule, of aten.linalg_matrix_exp.default
a.weight axis 1 (7)
  7 of 7 frozen: aten.linear.default in a on the input args_0
a.bias axis 0 (7)
  7 of 7 frozen: an op without a rule, of aten.linalg_matrix_exp.default""",
    ("residual", "stem"): "stem: no parameter of that name is in the graph",
}


@pytest.mark.parametrize(("name", "layer"), EXPLAINED)
def test_explain(name: str, layer: str) -> None:
    assert _coupling(name).explain(layer) == EXPLAINED[name, layer]


def test_text() -> None:
    assert (
        str(_coupling("flatten"))
        == """\
1 groups, 6 units
0: 6 channel units on 0.weight[0]x1, 0.bias[0]x1, 3.weight[1]x16
frozen 0.weight[1]: 3/3, aten.conv2d.default in 0 on the input input_1
frozen 3.weight[0]: 2/2, the result of output
frozen 3.bias[0]: 2/2, the result of output"""
    )


@pytest.mark.parametrize("name", but_slow(["residual", "transformer", "mobile", "expanded keys"], quick=("residual",)))
def test_coupling_twice_gives_the_same_and_leaves_the_graph_alone(name: str) -> None:
    build, draw = NETWORKS[name]
    first = _coupling(name)
    graph = str(first.captured.module.graph)
    again = couple(first.captured, strict=True)  # every op of theirs has a rule
    assert first.unsupported == again.unsupported == ()
    assert str(again) == str(first)
    assert np.array_equal(again.units, first.units)
    assert str(first.captured.module.graph) == graph
    assert str(prepared(build(), draw(1), seed=1)[1]) == str(first)


@pytest.mark.parametrize("name", NETWORKS)
def test_to_networkx(name: str) -> None:
    coupling = _coupling(name)
    graph = coupling.to_networkx()
    axes = {f"{a.tensor}[{a.dim}]": len(a.labels) for a in coupling.axes}
    groups = {g.name: (g.kind, len(g.units)) for g in coupling.groups}
    assert {n: d["size"] for n, d in graph.nodes(data=True) if d["kind"] == "axis"} == axes
    assert {n: (d["kind"], d["units"]) for n, d in graph.nodes(data=True) if "units" in d} == groups
    edges = {(a, b): d["coordinates"] for a, b, d in graph.edges(data=True)}
    expected = {(g.name, list(axes)[i]): count for g in coupling.groups for i, count in g.axes}
    assert {frozenset(edge): n for edge, n in edges.items()} == {frozenset(e): n for e, n in expected.items()}
    assert nx.is_bipartite(graph)


# -- an op without a rule, neutral labels -------------------------------------------------------------------------


def test_an_op_without_a_rule_is_reported_or_raises() -> None:
    coupling = _coupling("an op without a rule")
    assert coupling.unsupported == (("aten.linalg_matrix_exp.default", ""),)
    with pytest.raises(
        UnsupportedOpError, match=r"aten\.linalg_matrix_exp\.default in module .*File .* has no coupling rule"
    ):
        couple(coupling.captured, strict=True)


def test_a_constant_is_free_and_each_reader_takes_a_part_of_its_own() -> None:
    coupling = _coupling("a constant between two layers")
    table = next(node for node in coupling.values if node.target is torch.ops.aten.linspace.default)
    assert list(map(ax.is_free, coupling.values[table])) == [True]
    (cast,) = table.users  # to the model's dtype of the moment
    edges = [axes for (_, value), axes in coupling.edges.items() if value is cast]
    taken = [coupling.channels.resolve(axis[0].labels) for (axis,) in edges]
    of_layers = [coupling.channels.resolve(coupling.parameter(f"{n}.bias")[0][0].labels) for n in "ab"]
    assert [t.tolist() for t in taken] == [o.tolist() for o in of_layers]
    assert not set(taken[0].flat) & set(taken[1].flat)


def test_an_expanded_dimension_can_shrink_with_its_neighbour() -> None:
    coupling = _coupling("expanded keys")
    repeats = next(g for g in coupling.groups if g.name == "q:head")  # one query head of every key's two
    slicer = coupling.slicer(coupling.removed_mask(repeats.units[:1]))
    kept = {n: slicer.count(coupling.parameter(f"{n}.weight")[0]) for n in "qkv"}
    assert kept == {"q": 6, "k": 6, "v": 6}
    assert slicer.index(coupling.parameter("q.weight")[0]).tolist() == [3, 4, 5, 9, 10, 11]


# -- units by themselves ------------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True)
@given(st.sampled_from(list(small.NETWORKS)), st.data())
@pytest.mark.slow
def test_masks_and_units_round_trip(name: str, data: Any) -> None:
    coupling = _coupling(name)
    units = data.draw(st.sets(st.integers(0, len(coupling.units) - 1)))
    removed = coupling.removed_mask(units)
    assert removed.shape == (len(coupling.channels),)
    assert removed.sum() == len(units)
    assert set(coupling.units_of(removed)) == units


@pytest.mark.parametrize("name", but_slow(NETWORKS, quick=set(NETWORKS) - {"residual", "transformer"}))
def test_each_unit_can_go_by_itself(name: str) -> None:
    coupling, args = _coupling(name), NETWORKS[name][1](1)
    counts = cost_model(coupling).counts
    for unit in range(len(coupling.units)):
        removed = coupling.removed_mask([unit])
        assert counts(removed).all()  # no axis is left without any coordinate
        sliced = slice_graph(Selection(coupling, removed))
        state = {**dict(sliced.named_parameters()), **dict(sliced.named_buffers())}
        on = _coordinates(coupling, unit)
        for index, axis in enumerate(coupling.axes):
            assert state[axis.tensor].shape[axis.dim] == len(axis.labels) - len(on.get(index, ()))
        certificate = verify(coupling, removed, sliced, (args, {}))
        assert certificate.verified, (unit, certificate)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "nothing to prune"])
def test_one_unit_is_not_another(name: str) -> None:
    coupling, args = _coupling(name), NETWORKS[name][1](1)
    pairs = [g.units[:2] for g in coupling.groups if len(g.units) > 1]
    assert pairs
    for one, other in pairs:
        sliced = slice_graph(Selection(coupling, coupling.removed_mask([one])))
        certificate = verify(coupling, coupling.removed_mask([other]), sliced, (args, {}))
        assert certificate.verified is False, (one, other, certificate)


def test_a_sum_with_an_input_is_held_whole() -> None:
    # expanded constants beside a model input: the sum's features are the input's, and not free to go
    model = Fn(lambda m, x, s: m.l(s.unsqueeze(1).expand(-1, 2, 3).reshape(-1, 6) + x), l=nn.Linear(6, 3))
    both = (torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64))
    assert prepared(model, both)[1].groups == ()


@pytest.mark.parametrize("gram", [False, True])
def test_units_of_a_gram_matrix_form_one_group(gram: bool) -> None:
    # every unit lies on every other's coordinates: each had a group of its own, which min_keep held
    def outer(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        z = y.transpose(1, 2) @ y if gram else y[:, 0].unsqueeze(2) * y[:, 0].unsqueeze(1)
        return m.b(z.flatten(1))

    x = torch.randn(3, 7, 5, dtype=torch.float64)
    coupling = prepared(Fn(outer, a=nn.Linear(5, 4), b=nn.Linear(16, 2)), (x,))[1]
    scores = {group.name: torch.rand(len(group.units)) for group in coupling.groups}
    solution = solve(coupling, scores, ratios=0.5)
    assert len(coupling.groups) == 1 and len(solution.units) == 2
    assert certify(coupling, (x,), solution.removed).verified is True


def test_a_channel_on_every_coordinate_of_a_layer_stays() -> None:
    # a grouped convolution after one with other groups: some channels cover a whole weight, and were units all the same
    model = nn.Sequential(nn.Conv1d(3, 12, 1), nn.Conv1d(12, 12, 1, groups=2), nn.Conv1d(12, 12, 1, groups=3))
    model.append(nn.Conv1d(12, 2, 1))
    coupling = prepared(model, (torch.randn(2, 3, 4, dtype=torch.float64),))[1]
    assert coupling.groups
    sizes = [len(axis.labels) for axis in coupling.axes]
    assert all(count < sizes[index] for group in coupling.groups for index, count in group.axes)
    assert any("would go with it" in text for text in coupling.channels._reasons)


def test_a_size_that_turns_out_static_ties_nothing() -> None:
    # a position table fixes the length: sizes asked of a joint qkv view kept that view, and its ties, alive
    attention = Attention(heads=3, kv_heads=4, how="sdpa", qkv="select", causal=True, rotary=True)
    network = Network("ids", 6, (attention, Position(how="buffer")), "max")
    outcome = run(Case(network, Pruning(ratio=0.3, seed=1)))
    assert outcome.status == "verified" and not outcome.missing


def test_a_part_of_an_axis_that_holds_the_batch_as_well() -> None:
    """ALiBi folds the heads into a batch that is known only at run time: a part of the heads lies in every sample."""

    def forward(m: Any, x: Tensor, mask: Tensor) -> Tensor:
        b, n, _ = x.shape
        slopes = torch.full((4,), 0.5, dtype=x.dtype) ** torch.arange(1, 5)
        bias = (slopes[None, :, None] * mask.cumsum(-1)[:, None, :]).reshape(b * 4, 1, n)
        q, k, v = (f(x).view(b, n, 4, 3).transpose(1, 2).reshape(b * 4, n, 3) for f in (m.q, m.k, m.v))
        y = bias.baddbmm(q, k.transpose(1, 2)).softmax(-1) @ v
        return m.o(y.view(b, 4, n, 3).transpose(1, 2).reshape(b, n, 12))

    parts = {name: nn.Linear(6, 12) for name in "qkv"}
    args = (torch.randn(3, 5, 6, dtype=torch.float64), torch.ones(3, 5, dtype=torch.float64))
    coupling = prepared(Fn(forward, **parts, o=nn.Linear(12, 2)), args)[1]
    heads = next(group for group in coupling.groups if group.kind == "head")
    for gone in ([0], [1, 3], [2, 3]):
        assert certify(coupling, args, coupling.removed_mask(heads.units[gone])).verified


@pytest.mark.slow
def test_shuffled_channels_come_in_groups_that_can_be_ranked() -> None:
    torch.manual_seed(0)
    model = torchvision.models.ShuffleNetV2([2, 2, 2], [8, 16, 32, 64, 64], num_classes=5)
    x = torch.randn(2, 3, 64, 64)
    coupling = couple(capture(model.eval(), (x,)))
    assert max(len(group.units) for group in coupling.groups) == 64
    assert len(coupling.groups) < len(coupling.units) / 8

"""Traps on the way from a model to a smaller one, each from end to end; many have tests of their own stage as well."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.capturing.captured import capture
from fxprune.compiler.by_hand import verify
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.interpreter import couple
from fxprune.coupling.selection import Selection
from fxprune.rewriting.emission import emit
from fxprune.rewriting.pruned import PrunedModule
from fxprune.rewriting.slicing import slice_graph
from tests.support.pruning import Fn, certify, groups_of, prepared, removal
from tests.support.weights import randomise
from tests.twin.test_certificate import network


def batch(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def couple_fn(function: Callable[..., Any], *args: Tensor, **parts: Any) -> Coupling:
    torch.manual_seed(0)
    return prepared(Fn(function, **parts), args)[1]


def pruned_at(coupling: Coupling, share: float = 0.5) -> PrunedModule:
    removed = removal(coupling, 0, share)
    assert removed.any()
    return emit(coupling.captured, slice_graph(Selection(coupling, removed)))


def compiled(model: nn.Module, data: list[Any], budget: float = 0.6, **options: Any) -> PrunedModule:
    pruned = fxprune.compile(model, data, budget, recover=None, progress=False, **options)
    assert fxprune.report(pruned).verified is True
    return pruned


class Convolutions(nn.Module):
    """Takes images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 3, stride=2))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.body(x)).mean((2, 3)))


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return randomise(Convolutions().eval(), 0, (torch.randn(4, 3, 12, 12),))


# -- the example -------------------------------------------------------------------------------------------------------


def test_one_tensor_given_twice_in_the_calibration_data() -> None:
    torch.manual_seed(0)
    model = Fn(
        lambda m, q, k: m.o(m.a(q).relu() * m.b(k)), a=nn.Linear(4, 8), b=nn.Linear(4, 8), o=nn.Linear(8, 2)
    ).eval()
    x, y, z = torch.randn(5, 4), torch.randn(5, 4), torch.randn(5, 4)
    pruned = compiled(model, [((x, x), z)])
    with torch.no_grad():
        assert not torch.allclose(pruned(x, y), pruned(x, x))
        assert not torch.allclose(pruned(y, x), pruned(x, x))


def test_calibration_data_of_single_samples() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    pruned = compiled(model, [torch.randn(1, 4) for _ in range(3)])
    assert [len(pruned(torch.randn(n, 4))) for n in (1, 2, 7)] == [1, 2, 7]


def test_sizes_that_differ_between_batches_stay_dynamic() -> None:
    pruned = compiled(convolutions(), [torch.randn(2, 3, s, 12) for s in (12, 9, 10)])
    assert pruned(torch.randn(3, 3, 31, 12)).shape == (3, 4)


def test_no_guard_refuses_another_size_that_the_graph_can_take() -> None:
    pruned = compiled(convolutions(), [torch.randn(2, 3, 12, 12)])
    full = pruned(torch.randn(1, 3, 20, 27))
    assert full.shape == (1, 4) and torch.isfinite(full).all()


# -- what an exported program cannot do --------------------------------------------------------------------------------


def test_trains_saves_and_switches_modes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12, momentum=None), nn.Dropout(0.5), nn.Conv2d(12, 4, 1))
    pruned = compiled(model.eval(), [torch.randn(4, 3, 8, 8)])
    norm, x = pruned.get_submodule("1"), torch.randn(4, 3, 8, 8)
    assert norm.momentum is None and len(norm.running_mean) < 12
    still = pruned(x)
    mean = norm.running_mean.clone()
    pruned.train()
    assert not torch.equal(pruned(x), pruned(x))
    assert not torch.equal(norm.running_mean, mean)
    pruned.eval()
    assert torch.equal(pruned(x), pruned(x)) and not torch.equal(pruned(x), still)
    buffer = io.BytesIO()
    torch.save(pruned, buffer)
    assert not any("fxprune" in node.meta for node in pruned.graph.nodes)


def test_random_branches_are_random_again_in_the_pruned_model() -> None:
    torch.manual_seed(0)
    model = torchvision.models.SwinTransformer(
        patch_size=[4, 4], embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=[2, 2], dropout=0.0,
        attention_dropout=0.3, stochastic_depth_prob=0.9, num_classes=5,
    )  # fmt: skip
    x = torch.randn(8, 3, 16, 16)
    randomise(model.eval(), 0, (x,))
    pruned = compiled(model, [x], 0.7)
    assert torch.equal(pruned(x), pruned(x))
    pruned.train()
    assert not torch.equal(pruned(x), pruned(x))
    kinds = {type(module).__name__ for module in pruned.modules()}
    assert "StochasticDepth" in kinds


def test_norms_and_attention_stay_whole() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    captured = capture(layer, (torch.randn(2, 5, 8),))
    ops = [str(node.target) for node in captured.module.graph.nodes if node.op == "call_function"]
    assert ops.count("aten.layer_norm.default") == 2
    assert ops.count("aten.scaled_dot_product_attention.default") == 1
    assert not any("softmax" in op or "native" in op or "rsqrt" in op for op in ops)


# -- in-place writes ---------------------------------------------------------------------------------------------------

WRITES: dict[str, Callable[[Tensor], Any]] = {
    "relu_": lambda y: y.relu_(), "add_ to a slice": lambda y: y[:, 1:4].add_(1.0), "mul_ of a select": lambda y: y[:, 2].mul_(2),
    "unfold": lambda y: y.unfold(1, 3, 1).mul_(2),
    "diagonal": lambda y: y.diagonal().fill_(0.5), "masked": lambda y: y.masked_fill_(y > 0, 0.5),
    "index_put": lambda y: y.__setitem__((slice(None), torch.tensor([0, 2])), 0.5), "transposed": lambda y: y.t()[1:3].mul_(2),
}  # fmt: skip


@pytest.mark.parametrize("how", WRITES)
def test_a_write_reaches_every_alias_or_holds_its_channels(how: str) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        WRITES[how](y)
        return m.b(y)

    coupling = couple_fn(forward, batch(6, 5), a=nn.Linear(5, 6), b=nn.Linear(6, 2))
    for share in (0.3, 0.5, 0.9) if coupling.groups else ():
        assert certify(coupling, (batch(6, 5, seed=1),), removal(coupling, 0, share)).verified is True
    if how in ("unfold", "a part of a view"):
        assert not coupling.groups and any("unfold" in f.reason or "rule" in f.reason for f in coupling.frozen())


# -- what holds still --------------------------------------------------------------------------------------------------


def test_an_unknown_op_holds_what_it_touches_and_strict_names_it() -> None:
    torch.manual_seed(0)
    model = Fn(
        lambda m, x: m.c(m.b(m.a(x).triu()).relu()), a=nn.Linear(5, 6), b=nn.Linear(6, 8), c=nn.Linear(8, 2)
    ).eval()
    captured = capture(model, (torch.randn(4, 5),))
    coupling = couple(captured)
    assert groups_of(coupling) == ["8 channel: b.weight[0] b.bias[0] c.weight[1]"]
    assert [op for op, _ in coupling.unsupported] == ["aten.triu.default"]
    assert "an op without a rule, of aten.triu.default" in coupling.explain("a")
    with pytest.raises(fxprune.UnsupportedOpError, match=r"aten\.triu\.default in module .* line \d+, in forward"):
        couple(captured, strict=True)
    with pytest.raises(fxprune.UnsupportedOpError):
        fxprune.compile(model, [((torch.randn(4, 5),), torch.zeros(4))], 0.8, strict=True, progress=False)


def _prefix(m: Any, x: Tensor) -> Tensor:
    k, v = (torch.cat([p.expand(len(x), -1, -1), f(x)], 1) for p, f in ((m.pk, m.k), (m.pv, m.v)))
    return m.o(F.scaled_dot_product_attention(m.q(x), k, v))


HELD: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...], dict[str, Any], str, int, str]] = {
    "token rows": (lambda m, x: m.b(m.t(x)), (torch.arange(12).reshape(3, 4),), {"t": nn.Embedding(12, 6), "b": nn.Linear(6, 2)},
                   "t.weight", 0, "rows"),
    "position rows": (lambda m, x: m.b(m.a(x) + m.t[: x.shape[1]]), (batch(3, 4, 5),),
                      {"a": nn.Linear(5, 6), "t": nn.Parameter(torch.randn(9, 6)), "b": nn.Linear(6, 2)}, "t", 0, "aten.add"),
    "rows of an indexed table": (lambda m, x: m.b(m.t[torch.tensor([[0, 1], [2, 0]])]).sum() * x, (batch(3, 5),),
                                 {"t": nn.Parameter(torch.randn(4, 6)), "b": nn.Linear(6, 2)}, "t", 0, "index"),
    "key length": (_prefix, (batch(3, 4, 5),), {"q": nn.Linear(5, 6), "k": nn.Linear(5, 6), "v": nn.Linear(5, 6), "o": nn.Linear(6, 2),
                   "pk": nn.Parameter(torch.randn(1, 3, 6)), "pv": nn.Parameter(torch.randn(1, 3, 6))}, "pk", 1, "key length"),
    "softmax": (lambda m, x: m.b(x @ m.t.softmax(-1)), (batch(3, 5),), {"t": nn.Parameter(torch.randn(5, 6)), "b": nn.Linear(6, 2)},
                "t", 1, "normalised"),
    "a selected coordinate": (lambda m, x: m.b(m.a(x)) + m.a(x)[:, 2, None], (batch(3, 5),), {"a": nn.Linear(5, 6), "b": nn.Linear(6, 2)},
                              "a.weight", 0, "select"),
    "the result": (lambda m, x: m.a(x), (batch(3, 5),), {"a": nn.Linear(5, 6)}, "a.weight", 0, "the result"),
}  # fmt: skip


@pytest.mark.parametrize("name", HELD)
def test_what_must_stay_is_held_and_says_why(name: str) -> None:
    function, args, parts, tensor, dim, words = HELD[name]
    coupling = couple_fn(function, *args, **parts)
    held = {(f.tensor, f.dim): f for f in coupling.frozen()}
    assert words in held[tensor, dim].reason
    assert held[tensor, dim].reason in coupling.explain(tensor)
    for share in (0.4, 0.9) if coupling.groups else ():
        assert certify(coupling, args, removal(coupling, 0, share)).verified is True


# -- constants ---------------------------------------------------------------------------------------------------------


def test_constants_are_cut_for_each_reader_and_stay_unsaved() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        scale = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], dtype=x.dtype)
        return m.c((m.b((m.a(x) * scale * m.table).relu()) * scale).relu())

    model = Fn(forward, a=nn.Linear(5, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 2))
    model.register_buffer("table", torch.rand(6, dtype=torch.float64) + 1, persistent=False)
    args = (batch(4, 5),)
    coupling = prepared(model, args)[1]
    assert len(coupling.groups) == 2, "layers that share a constant are not tied to each other"
    pruned = pruned_at(coupling, 0.7)
    assert verify(coupling, removal(coupling, 0, 0.7), pruned, (args, {})).verified is True
    assert set(pruned.state_dict()) == {f"{name}.{kind}" for name in "abc" for kind in ("weight", "bias")}
    moved = copy.deepcopy(pruned).float().to("meta")
    assert moved(torch.empty(3, 5, device="meta")).dtype == torch.float32


def _rotary(m: Any, x: Tensor) -> Tensor:
    b, n, _ = x.shape
    angles = torch.outer(torch.arange(n, dtype=x.dtype), 100 ** -torch.arange(0, 1, 1 / 3, dtype=x.dtype))
    cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))
    for i in "01":
        q, k, v = (m.get_submodule(f + i)(x).view(b, n, 2, 6).transpose(1, 2) for f in "qkv")
        q, k = (z * cos + torch.cat([-z[..., 3:], z[..., :3]], -1) * sin for z in (q, k))
        x = x + m.get_submodule("o" + i)(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))
    return x


def test_rotary_tables_do_not_unite_the_layers() -> None:
    parts = {f + i: nn.Linear(*((12, 5) if f == "o" else (5, 12))) for i in "01" for f in "qkvo"}
    args = (batch(3, 4, 5),)
    coupling = couple_fn(_rotary, *args, **parts)
    kinds = sorted((len(group.units), group.kind) for group in coupling.groups)
    assert kinds == sorted([(2, "head"), (3, "head_dim"), (6, "head_dim")] * 2)
    assert certify(coupling, args, removal(coupling, 0, 0.5)).verified is True


def test_grouped_queries_by_expansion_lose_groups_and_positions_in_groups() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = m.q(x).view(b, n, 4, 3).transpose(1, 2)
        k, v = (f(x).view(b, n, 2, 3).transpose(1, 2) for f in (m.k, m.v))
        k, v = (z[:, :, None].expand(b, 2, 2, n, 3).reshape(b, 4, n, 3) for z in (k, v))
        return m.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))

    args = (batch(3, 4, 5),)
    coupling = couple_fn(forward, *args, q=nn.Linear(5, 12), k=nn.Linear(5, 6), v=nn.Linear(5, 6), o=nn.Linear(12, 2))
    kinds = {kind: [t for t in groups_of(coupling) if f" {kind}: q.weight[0]x6" in t] for kind in ("head", "kv_group")}
    assert [t.count("k.weight") for t in kinds["head"]] == [0], "the same query in every group"
    assert [t.count("k.weight") for t in kinds["kv_group"]] == [1], "whole groups with their key"
    assert certify(coupling, args, removal(coupling, 0, 0.5)).verified is True


def test_grouped_queries_in_one_weight_lose_groups_and_positions_in_groups() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (z.view(b, n, -1, 3).transpose(1, 2) for z in m.qkv(x).split([12, 6, 6], -1))
        found = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return m.o(found.transpose(1, 2).reshape(b, n, -1))

    args = (batch(3, 4, 5),)
    coupling = couple_fn(forward, *args, qkv=nn.Linear(5, 24), o=nn.Linear(12, 2))
    found = {text for text in groups_of(coupling) if " head_dim" not in text}
    assert {text.partition(":")[0] for text in found} == {"2 head", "2 kv_group"}
    assert any("kv_group" in text and "qkv.weight[0]x12" in text for text in found)
    assert certify(coupling, args, removal(coupling, 0, 0.5)).verified is True


# -- ties, sizes, groups -----------------------------------------------------------------------------------------------


def test_a_tie_is_one_tensor_after_pruning() -> None:
    case = network("transformer")
    head, table = case.module.get_submodule("head"), case.module.get_submodule("embedding")
    assert head.weight is table.weight and head.weight.shape[1] < 12
    assert [n for n, _ in case.module.named_parameters() if n in ("head.weight", "embedding.weight")] == [
        "embedding.weight"
    ]


def test_standardised_weights_lose_rows_and_columns() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        w = m.a.weight
        w = F.batch_norm(w.reshape(1, len(w), -1), None, None, training=True).reshape_as(w)
        return m.b(F.conv2d(m.p(x), w, m.a.bias).relu())

    args = (batch(3, 3, 6, 6),)
    coupling = couple_fn(forward, *args, p=nn.Conv2d(3, 6, 1), a=nn.Conv2d(6, 8, 3), b=nn.Conv2d(8, 2, 1))
    assert coupling.statistics and len(coupling.units) == 14
    assert certify(coupling, args, removal(coupling, 0, 0.5)).verified is True


def test_one_size_serves_windows_here_and_heads_there() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        b = len(x)
        windows = m.w(m.a(x).reshape(b * 4, 12).relu()).reshape(b, 8)
        return windows, m.e(m.d(x[:, 0]).reshape(b * 4, 3).sin().reshape(b, 12))

    parts = {"a": nn.Linear(5, 12), "w": nn.Linear(12, 2), "d": nn.Linear(5, 12), "e": nn.Linear(12, 2)}
    args = (batch(3, 4, 5),)
    coupling = couple_fn(forward, *args, **parts)
    assert {len(group.units) for group in coupling.groups} == {12, 4, 3}
    for share in (0.3, 0.5, 1.0):
        assert certify(coupling, args, removal(coupling, 0, share)).verified is True


@pytest.mark.parametrize("split", [lambda y: y.split([6, 0], -1), lambda y: (y[:, :6], y[:, 6:])])
def test_axes_of_size_zero(split: Callable[[Tensor], Any]) -> None:
    args = (batch(3, 5),)
    coupling = couple_fn(lambda m, x: m.b(torch.cat([*split(m.a(x))], -1)), *args, a=nn.Linear(5, 6), b=nn.Linear(6, 2))
    assert groups_of(coupling) == ["6 channel: a.weight[0] a.bias[0] b.weight[1]"]
    assert certify(coupling, args, removal(coupling, 0, 0.5)).verified is True


def test_shuffled_channels_come_in_groups_that_can_be_ranked() -> None:
    torch.manual_seed(0)
    model = torchvision.models.ShuffleNetV2([2, 2, 2], [8, 16, 32, 64, 64], num_classes=5)
    x = torch.randn(2, 3, 64, 64)
    coupling = couple(capture(model.eval(), (x,)))
    assert max(len(group.units) for group in coupling.groups) == 64
    assert len(coupling.groups) < len(coupling.units) / 8


def test_a_constant_network_is_unproven_and_no_error() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    nn.init.zeros_(model[2].weight)
    report = fxprune.report(fxprune.compile(model, [torch.randn(6, 4)], 0.6, recover=None, progress=False))
    assert report.verified is None and "constant over the batch" in str(report)


@pytest.mark.parametrize("how", ["std", "var", "var_mean", "unbiased"])
@pytest.mark.parametrize("wanted", [{"ratios": 1.0}, {"budget": 0.35}, {"budget": 0.35, "min_keep": 0}])
def test_an_unbiased_variance_keeps_two_channels(how: str, wanted: dict[str, Any]) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.up(x)
        spread = {
            "std": lambda: y.std(-1, keepdim=True),
            "var": lambda: y.var(-1, keepdim=True),
            "var_mean": lambda: torch.var_mean(y, -1, keepdim=True)[0],
            "unbiased": lambda: torch.var(y, (-1,), True, True),
        }[how]()
        return self.down(y / (spread + 0.1))

    model = Fn(forward, up=nn.Linear(4, 12, bias=False), down=nn.Linear(12, 3, bias=False)).double()
    pruned = fxprune.compile(model, [batch(6, 4)], recover=None, progress=False, **wanted)
    assert fxprune.report(pruned).verified is True
    assert pruned.get_parameter("up.weight").shape[0] >= 2
    if "ratios" in wanted:
        assert pruned.get_parameter("up.weight").shape[0] == 2


def test_a_biased_variance_may_keep_one() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.up(x)
        return self.down(y / (y.var(-1, correction=0, keepdim=True) + 0.1))

    model = Fn(forward, up=nn.Linear(4, 12), down=nn.Linear(12, 3)).double()
    pruned = fxprune.compile(model, [batch(6, 4)], ratios=1.0, recover=None, progress=False)
    assert pruned.get_parameter("up.weight").shape[0] == 1

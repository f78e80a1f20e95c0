"""What the masked twin computes, and what a certificate says about outputs that prove something or nothing."""

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
from fxprune.twin.certificate import lifted
from fxprune.twin.interpreter import Run
from tests.support.pruning import Fn, prepared
from tests.support.weights import fingerprint
from tests.twin.test_certificate import Compiled, changed, compiled

A = torch.ops.aten
WIDTH = 12


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layers(function: Callable[..., Any], *, units: int | None = None, **parts: Any) -> Compiled:
    """Returns ``function(m, m.a(x))`` compiled: ``m.a`` makes 12 channels, ``m.b`` reads them; some of them removed.

    Args:
        function: of the module and the channels.
        units: coordinates of ``m.a`` that each removed unit has.
        parts: further parts of the module.
    """
    torch.manual_seed(0)
    model = Fn(lambda m, x: function(m, m.a(x)), **{"a": nn.Linear(5, WIDTH), "b": nn.Linear(WIDTH, 4), **parts})
    coupling = prepared(model, (tokens(6, 5),))[1]
    on = coupling.parameter("a.weight")[0]
    removed = np.zeros(len(coupling.channels), bool)
    for group in coupling.groups:
        for unit in group.units[1:-2]:
            one = coupling.removed_mask([unit])
            if units is None or coupling.slicer(one).count(on) == WIDTH - units:
                removed |= one
    return compiled(coupling, (tokens(6, 5, seed=1),), removed)


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


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_run_over_what_is_kept(name: str) -> None:
    statistic = STATISTICS[name]
    case = layers(lambda m, y: m.b(statistic(y)), units=3 if name == "group norm" else None)
    assert case.coupling.statistics
    weights = {n: case.original(n) for n in ("a.weight", "a.bias", "b.weight", "b.bias")}
    y, here = F.linear(case.args[0], weights["a.weight"], weights["a.bias"]), kept(case)
    (twin,) = Run(Selection(case.coupling, case.removed))(case.args)
    right = F.linear(statistic(y[:, here]), weights["b.weight"][:, here], weights["b.bias"])
    torch.testing.assert_close(twin, right, rtol=1e-12, atol=1e-12)
    assert case.certificate().verified is True

    zeroed = torch.zeros_like(y).index_copy(1, here, y[:, here])
    zeroed = torch.zeros_like(y).index_copy(1, here, statistic(zeroed)[:, here])
    naive = F.linear(zeroed, weights["b.weight"], weights["b.bias"])
    assert torch.allclose(naive, right) == (name in ("sum", "norm")), "zeros are not the same as absence"


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
    coupling = prepared(Fn(_attention, **parts), (tokens(4, 7, 5),))[1]
    inner = next(g for g in coupling.groups if g.kind == "head_dim" and "q" in g.producers)
    case = compiled(coupling, (tokens(4, 7, 5, seed=1),), coupling.removed_mask(inner.units[:3]))
    assert case.module.get_submodule("q").weight.shape == (6, 5)
    node = next(n for n in case.module.graph.nodes if "scaled_dot_product_attention" in str(n.target))
    assert node.kwargs["scale"] == pytest.approx(1 / math.sqrt(6))
    assert case.certificate().verified is True
    for wrong in (None, 1 / math.sqrt(3)):
        node.kwargs = {**node.kwargs, "scale": wrong}
        case.module.recompile()
        assert case.certificate().verified is False


# -- precision ---------------------------------------------------------------------------------------------------------


def _cast(m: Any, y: Tensor) -> Tensor:
    z = y.float()
    z = z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + 1e-6)
    return m.b(z.to(y.dtype) * torch.ones(1, dtype=torch.float32))


def test_casts_to_float32_are_lifted_in_both() -> None:
    case = layers(_cast)
    casts = {v for n in case.module.graph.nodes for v in (*n.args, *n.kwargs.values()) if v is torch.float32}
    assert casts, "the cast is in the emitted module"
    certificate = case.certificate(dtype=torch.float64)
    assert certificate.verified is True and certificate.max_error < 1e-12
    (x,) = case.args
    with torch.no_grad():
        apart = (case.module(x) - lifted(case.module, torch.float64)(x)).abs().max()
    assert apart > 1e-9, "without lifting the check would see the rounding of float32"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_lifted_copy_leaves_its_argument_alone(dtype: torch.dtype) -> None:
    module = layers(_cast).module
    before, code, (x,) = fingerprint(module), module.code, (tokens(3, 5),)
    expected = module(x)
    copy = lifted(module, dtype)
    assert {t.dtype for t in (*copy.parameters(), copy(x.to(dtype)))} == {dtype}
    if dtype is not torch.float32:
        assert "torch.float32" in module.code and "torch.float32" not in copy.code
    assert fingerprint(module) == before and module.code == code
    assert torch.equal(module(x), expected)
    assert not {t.data_ptr() for t in copy.parameters()} & {t.data_ptr() for t in module.parameters()}


def test_a_lifted_copy_of_another_module() -> None:
    layer = nn.Linear(2, 2)
    assert lifted(layer, torch.float64).weight.dtype == torch.float64 and layer.weight.dtype == torch.float32


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12])
def test_the_size_of_the_outputs_is_no_matter(factor: float) -> None:
    plain, case = (layers(lambda m, y, f=f: m.b(y.relu()) * f) for f in (1.0, factor))
    assert case.certificate().verified is True
    for (name, tensor), (_, same) in zip(case.module.named_parameters(), plain.module.named_parameters(), strict=True):
        with changed(tensor, tensor * (1 + 1e-6)), changed(same, same * (1 + 1e-6)):
            found, expected = case.certificate(), plain.certificate()
        assert found.verified is False, name
        assert found.max_error == pytest.approx(expected.max_error, rel=1e-3)


def test_a_tolerance_of_ones_own() -> None:
    case = layers(lambda m, y: m.b(y.relu()))
    bias = case.module.get_parameter("b.bias")
    with changed(bias, bias + 1e-5):
        found = [case.certificate(tolerance=t) for t in (1e-3, 1e-8)]
    assert [(c.verified, c.tolerance) for c in found] == [(True, 1e-3), (False, 1e-8)]


# -- outputs that prove nothing ----------------------------------------------------------------------------------------

DEGENERATE: dict[str, tuple[Callable[..., Tensor], str]] = {
    "zero": (lambda m, y: m.b(y) * 0, "constant over the batch"),
    "constant": (lambda m, y: m.b(y * 0 + 1), "constant over the batch"),
    "almost constant": (lambda m, y: m.b(y) * 1e-14 + 3, "constant over the batch"),
    "NaN": (lambda m, y: m.b(y) * float("nan"), "not finite"),
    "NaN here and there": (lambda m, y: m.b(y).sqrt(), "not finite"),
    "infinite": (lambda m, y: m.b(y).exp() / 0, "not finite"),
    "one infinity": (lambda m, y: m.b(y) / (y.sum(1, keepdim=True) * 0), "not finite"),
    "empty": (lambda m, y: m.b(y)[:, :0], "empty"),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_a_degenerate_output_is_never_proof(name: str) -> None:
    function, words = DEGENERATE[name]
    case = layers(function)
    certificate = case.certificate()
    assert certificate.verified is None
    assert words in certificate.note and "output 0" in certificate.note
    beside = layers(lambda m, y: (m.b(y), function(m, y), m.b(y) + 1)).certificate()
    assert beside.verified is None and "output 1" in beside.note


@pytest.mark.parametrize("name", ["zero", "constant", "NaN", "infinite"])
def test_a_degenerate_output_may_still_be_wrong(name: str) -> None:
    function = DEGENERATE[name][0]
    case = layers(lambda m, y: function(m, y) + m.s, s=nn.Parameter(torch.ones(4)))
    assert case.certificate().verified is None
    shift = case.module.get_parameter("s")
    with changed(shift, shift + 1):
        assert case.certificate().verified is (None if name in ("NaN", "infinite") else False)
    beside = layers(lambda m, y: (function(m, y), m.b(y)))
    bias = beside.module.get_parameter("b.bias")
    with changed(bias, bias + 1):
        assert beside.certificate().verified is False


def test_a_difference_the_size_of_rounding_is_neither_proof_nor_fault() -> None:
    case = layers(lambda m, y: m.b(y) * 1e-3 + 1e9)  # its last place is worth 1e-7
    bias = case.module.get_parameter("b.bias")
    assert case.certificate().verified is True
    with changed(bias, bias + 1e-3):
        certificate = case.certificate()
        assert certificate.verified is None and "by little more than rounding" in certificate.note
    with changed(bias, bias + 0.1):
        assert case.certificate().verified is False


def test_a_batch_of_one_is_measured_over_its_features() -> None:
    case = layers(lambda m, y: m.b(y.relu()))
    one = Compiled(case.coupling, case.removed, case.module, (case.args[0][:1],))
    assert one.certificate().verified is True


# -- several outputs, and of other kinds -------------------------------------------------------------------------------


def test_one_wrong_output_among_several_fails() -> None:
    case = layers(lambda m, y: {"first": m.b(y), "none": None, "more": [m.c(y), 3]}, c=nn.Linear(WIDTH, 3))
    assert case.certificate().verified is True
    for name in ("b.weight", "c.weight"):
        tensor = case.module.get_parameter(name)
        with changed(tensor, tensor * 1.01):
            certificate = case.certificate()
        assert certificate.verified is False and certificate.note == "the outputs differ"


def test_integer_outputs_are_equal_or_wrong() -> None:
    case = layers(lambda m, y: (m.b(y), m.c(y).argmax(1), m.c(y) > 0), c=nn.Linear(WIDTH, 3))
    assert case.certificate().verified is True
    bias = case.module.get_parameter("c.bias")
    with changed(bias, bias + torch.tensor([0.0, 9.0, 0.0])):
        certificate = case.certificate()
    assert certificate.verified is False and certificate.max_error == math.inf


class Other(nn.Module):
    """Changes what a module returns."""

    def __init__(self, inner: nn.Module, change: Callable[[Any], Any]) -> None:
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, *args: Any) -> Any:
        return self.change(self.inner(*args))


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda out: out[0], "2 outputs expected, 1 came"),
        (lambda out: (*out, out[0]), "2 outputs expected, 3 came"),
        (lambda out: (), "2 outputs expected, 0 came"),
        (lambda out: (out[0], out[1][:, :3]), "output 1 has another shape or dtype"),
        (lambda out: (out[0][:1], out[1]), "output 0 has another shape or dtype"),
        (lambda out: (1.0, out[1]), "output 0 has another shape or dtype"),
        (lambda out: (out[1], out[0]), "the outputs differ"),
        (lambda out: (out[0], out[1].float()), "output 1 has another shape or dtype"),
        (lambda out: (out[0], out[1] / 0), "the outputs differ"),
    ],
)
def test_outputs_of_another_form(change: Callable[[Any], Any], note: str) -> None:
    case = layers(lambda m, y: (m.b(y), m.b(y) * 2))
    certificate = case.certificate(Other(case.module, change))
    assert certificate.verified is False and certificate.note == note


def test_the_sliced_graph_and_the_emitted_module_are_both_checked() -> None:
    case = layers(lambda m, y: m.b(y.relu()))
    sliced = slice_graph(Selection(case.coupling, case.removed))
    assert case.certificate(sliced).verified is True
    assert case.certificate(emit(case.coupling.captured, sliced)).verified is True

"""Variance: that of what the reader gets, over all batches."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.scoring import score
from fxprune.scoring.variance import Variance, Welford
from tests.models.fn import Fn
from tests.support.formulas import order, two_layers
from tests.support.pruning import prepared


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.sampled_from([0.0, 1e6]))
def test_welford_gives_mean_and_variance_of_all_batches(sizes: list[int], offset: float) -> None:
    generator = torch.Generator().manual_seed(sum(sizes))
    parts = [torch.randn(n, 3, 2, generator=generator, dtype=torch.float64) + offset for n in sizes]
    welford = Welford()
    for part in parts:
        welford.add(part, 1)
    whole = torch.cat(parts).movedim(1, -1).reshape(-1, 3)
    assert torch.allclose(welford.mean, whole.mean(0), rtol=1e-12)
    assert torch.allclose(welford.variance, whole.var(0, correction=0), rtol=1e-6, atol=1e-9)


def test_float32_batches_are_summed_in_float64() -> None:
    x = torch.randn(1000, 2) * 1e-3 + 1000
    welford = Welford()
    for part in x.split(50):
        welford.add(part, 1)
    assert torch.allclose(welford.variance, x.double().var(0, correction=0), rtol=1e-3)


def test_variance_is_that_of_what_the_reader_gets() -> None:
    coupling, model = two_layers()
    batches = [(torch.randn(n, 5, dtype=torch.float64),) for n in (7, 20)]
    hidden = torch.cat([model.a(*batch).relu() for batch in batches]).detach()
    (raw,) = score(coupling, batches, Variance(weighted=False)).values()
    assert torch.allclose(raw, hidden.var(0, correction=0), rtol=1e-9)
    (weighted,) = score(coupling, batches, "variance").values()
    assert order(weighted) == order(hidden.var(0, correction=0) * model.b.weight.detach().square().sum(0))


def test_a_constant_unit_goes_first() -> None:
    coupling, model = two_layers()
    with torch.no_grad():
        model.a.weight[3] = 0
    batches = [(torch.randn(20, 5, dtype=torch.float64),)]
    (found,) = score(coupling, batches, "variance").values()
    assert order(found)[0] == 3 and found[3] == 0


def test_filters_of_a_depthwise_convolution_count_for_its_channels() -> None:
    parts = {"a": nn.Conv2d(3, 16, 1), "d": nn.Conv2d(16, 16, 3, groups=16), "b": nn.Conv2d(16, 2, 1)}
    coupling = prepared(Fn(lambda m, x: m.b(m.d(m.a(x))), **parts), (torch.randn(4, 3, 6, 6, dtype=torch.float64),))[1]
    with torch.no_grad():
        parts["d"].weight[::2] = 0
        parts["d"].bias[::2] = 0
    (found,) = score(coupling, [(torch.randn(4, 3, 6, 6, dtype=torch.float64),)], "variance").values()
    assert found[::2].max() < found[1::2].min()


def test_a_vector_that_reads_a_weight_is_a_layer_of_one_output() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        weight = m.layer.weight
        return m.last(F.linear(m.first(x).relu(), weight / torch.mv(weight, m.v).sum()).relu())

    model = Fn(forward, first=nn.Linear(5, 6), layer=nn.Linear(6, 6), v=torch.ones(6), last=nn.Linear(6, 2))
    _, coupling = prepared(model, (torch.randn(3, 5, dtype=torch.float64),))
    scores = score(coupling, [(torch.randn(9, 5, dtype=torch.float64),)], Variance())
    assert all(bool(values.isfinite().all()) for values in scores.values())

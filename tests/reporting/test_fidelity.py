"""Fidelity: the share of the outputs' variance that is left."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fxprune.data.batch import Batch
from fxprune.data.batches import Batches
from fxprune.reporting.fidelity import Reference, measured
from fxprune.results.fidelity import Fidelity


class Squeeze(nn.Module):
    """Gives what a function makes of its input."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def fidelity(dense: Any, other: Any, data: Any) -> Any:
    batches = Batches(data, device=torch.device("cpu"))
    return [Reference(Squeeze(dense), batches, limit).of(Squeeze(other)) for limit in (0, 1 << 30)]


def test_fidelity_is_the_share_of_variance_that_is_left() -> None:
    x = torch.randn(2, 64, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batches = [x[0], x[1][:40]]
    every = torch.cat(batches)
    mean = every.mean(0)
    for found in fidelity(lambda v: v, lambda v: v, batches):
        assert found.explained == 1.0 and found.agreement == 1.0
    for found in fidelity(lambda v: v, lambda v: mean.expand_as(v), batches):
        assert found.explained == pytest.approx(0.0, abs=1e-12)
    for found in fidelity(lambda v: v, lambda v: 0.5 * v, batches):
        expected = 1 - 0.25 * every.square().sum() / (every - mean).square().sum()
        assert found.explained == pytest.approx(float(expected)) and found.agreement == 1.0
    for found in fidelity(lambda v: v, lambda v: -v, batches):
        assert found.agreement == pytest.approx(float((every.argmax(1) == (-every).argmax(1)).double().mean()))


def test_fidelity_of_odd_outputs() -> None:
    x = [torch.randn(4, n, 3, dtype=torch.float64) for n in (5, 7, 6)]
    for found in fidelity(lambda v: (v, v.long()), lambda v: (v, v.long()), x):  # lengths vary, integers do not count
        assert found.explained == 1.0 and found.agreement is None
    for found in fidelity(lambda v: {"logits": v}, lambda v: {"logits": v.flip(-1)}, x):
        assert found.agreement is not None and found.agreement < 1
    flat = torch.cat([v.flatten() for v in x])
    for found in fidelity(lambda v: v, lambda v: v * 0 + flat.mean(), x):
        assert found.explained == pytest.approx(0.0, abs=1e-12)
    for found in fidelity(lambda v: v, lambda v: v * torch.nan, x):
        assert math.isnan(found.explained)
    for found in fidelity(lambda v: v * 0, lambda v: v * 0, x):
        assert found.explained is None and found.error == 0.0 and found.level == "unknown"


def classed(dense: Tensor, pruned: Tensor, targets: Any = None, causal: bool = False, **kwargs: Any) -> Fidelity:
    """Returns how close logits are, of a batch with targets."""
    batch = Batch((), kwargs, targets, len(dense))
    return measured([(batch, {"logits": dense}, {"logits": pruned})], causal=causal)


@pytest.mark.parametrize("left_out", ["targets", "mask", "tokens"])
def test_padded_places_do_not_count(left_out: str) -> None:
    torch.manual_seed(0)
    dense, pruned, counted = torch.randn(12, 5, 7), torch.randn(12, 5, 7), torch.ones(12, 5, dtype=torch.bool)
    counted[:, 3:] = False
    pruned = torch.where(counted[..., None], pruned, dense)  # what is padded is the same
    targets = torch.randint(7, (12, 5))
    if left_out == "targets":
        found = classed(dense, pruned, targets.masked_fill(~counted, -100))
    elif left_out == "mask":
        found = classed(dense, pruned, attention_mask=counted.long())
    else:  # the token that a place tells is the next one
        shifted = torch.cat([torch.zeros(12, 1, dtype=torch.bool), counted[:, :-1]], 1)
        found = classed(dense, pruned, targets.masked_fill(~shifted, -100), causal=True)
        assert found.perplexity is not None
    a, b = dense[counted], pruned[counted]
    assert found.agreement == pytest.approx(float((a.argmax(-1) == b.argmax(-1)).double().mean()))
    f, g = a.double().log_softmax(-1), b.double().log_softmax(-1)
    assert found.divergence == pytest.approx(float((f.exp() * (f - g)).sum(-1).mean()))
    assert found.error == pytest.approx(float((a - b).norm() / a.norm()), rel=1e-5)
    assert found.explained == pytest.approx(
        float(1 - (a - b).square().sum() / (a - a.mean(0)).square().sum()), rel=1e-5
    )


def test_integer_targets_say_where_classes_lie() -> None:
    dense, pruned = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)
    batch = Batch((), {}, torch.randint(4, (2, 3, 5)), 2)
    found = measured([(batch, dense, pruned)])
    assert found.agreement == pytest.approx(float((dense.argmax(1) == pruned.argmax(1)).double().mean()))


def test_as_many_classes_as_places_are_where_the_loss_takes_them() -> None:
    dense, pruned, targets = torch.randn(6, 4, 4), torch.randn(6, 4, 4), torch.randint(4, (6, 4))
    for named, dim in ((True, -1), (False, 1)):
        a, b = ({"logits": x} if named else x for x in (dense, pruned))
        found = measured([(Batch((), {}, targets, 6), a, b)])
        assert found.agreement == pytest.approx(float((dense.argmax(dim) == pruned.argmax(dim)).double().mean()))


def test_what_is_not_finite_in_the_dense_model_is_no_agreement() -> None:
    x = torch.full((12, 4), torch.nan)
    assert (
        measured([(Batch((x,), {}, None, 12), x, x)]).why == "not comparable: the dense model's outputs are not finite"
    )
    half = torch.randn(12, 4).index_fill(0, torch.arange(6), torch.nan)
    found = measured([(Batch((half,), {}, None, 12), half, half.index_fill(0, torch.arange(6), 1.0))])
    assert found.agreement == 1.0 and found.level == "good"


def test_a_few_samples_are_judged_by_the_variance() -> None:
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    near = x + 0.4 * torch.randn(2, 4, generator=torch.Generator().manual_seed(1)).abs().min() - 0.4 * x.mean()
    found = measured([(Batch((x,), {}, None, 2), x, near)])
    assert found.deviation is not None and found.deviation > 0.1 and "variance" in found.sentence
    alone = measured([(Batch((x[:1],), {}, None, 1), x[:1], 0.8 * x[:1])])
    assert alone.agreement == 1.0 and alone.level == "unknown"


def test_no_batch_left_to_judge_is_told() -> None:
    assert measured([]).why.startswith("not measured: the data had no batch left")


def test_an_output_that_does_not_vary_is_left_out() -> None:
    x = [torch.randn(8, 3, dtype=torch.float64)]
    for found in fidelity(lambda v: (v, v * 0 + 1), lambda v: (v, v * 0), x):
        assert found.explained == 1.0
    for found in fidelity(lambda v: (v, v * 0 + 1), lambda v: (v, v * torch.nan), x):
        assert math.isnan(found.explained)


def test_outputs_of_other_sizes_do_not_compare() -> None:
    x = [torch.randn(8, 3, dtype=torch.float64)]
    several: list[Any] = [lambda v: v[:3], lambda v: v[:0], lambda v: (v, v), lambda v: []]
    for other in several:
        for found in fidelity(lambda v: v, other, x) + fidelity(other, lambda v: v, x):
            assert found.explained is found.agreement is None and "not comparable: " in found.why
    for found in fidelity(lambda v: (v, v[:0]), lambda v: (v, v[:0]), x):
        assert found.explained == 1.0 and found.agreement == 1.0


@pytest.mark.parametrize(("limit", "kept"), [(0, 0), (200, 1), (1 << 30, 3)])
def test_outputs_are_compared_on_their_batch_though_the_data_are_shuffled(limit: int, kept: int) -> None:
    data = DataLoader(TensorDataset(torch.randn(12, 5)), 4, shuffle=True)  # 80 bytes a batch, and as many out of it
    reference = Reference(Squeeze(torch.exp), Batches(data, device="cpu"), limit)
    assert [reference.of(Squeeze(torch.exp)).explained for _ in range(3)] == [1.0] * 3
    assert len(reference._kept) == kept


def test_what_a_model_writes_into_its_buffers_is_gone() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * self.calls

    models = Counting(), Counting()
    data = Batches([torch.randn(8, 3)] * 2, device="cpu")
    assert Reference(models[0], data, 0).of(models[1]).explained == 1.0
    assert [float(m.calls) for m in models] == [0, 0]


def pairs_of(*outputs: Any, size: int = 4) -> Fidelity:
    return measured([(Batch((), {}, None, size), *outputs)])


def test_outputs_that_do_not_compare_say_why() -> None:
    x = torch.randn(4, 3)
    assert (
        pairs_of(x, x[:2]).why == "not comparable: an output is [4, 3] of the dense model and [2, 3] of the pruned one"
    )
    assert pairs_of((x, x), x).why == "not comparable: the dense model gives 2 outputs, the pruned one 1"
    assert pairs_of(x.long(), x.long()).why == "not comparable: the outputs hold no floating numbers that count"
    assert pairs_of(None, None).why == "not comparable: the outputs hold no floating numbers that count"
    boxes = torch.rand(7, 4)
    assert pairs_of(boxes, boxes).agreement is None and pairs_of(boxes, boxes).level == "good"
    assert pairs_of(x, x * torch.nan).level == "poor" and pairs_of(torch.ones(()), torch.ones(())).error == 0.0


def test_probabilities_are_taken_as_they_are() -> None:
    a, b = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    logits, probabilities = pairs_of(a, b), pairs_of(a.softmax(-1), b.softmax(-1))
    assert logits.divergence == pytest.approx(probabilities.divergence, rel=1e-9)
    masked = a.masked_fill(torch.eye(4, 5, dtype=torch.bool), -torch.inf)
    assert pairs_of(masked, masked).divergence == 0.0 and pairs_of(masked, masked).error == 0.0


def test_scores_of_places_are_counted_place_by_place() -> None:
    maps = torch.randn(2, 5, 4, 4)
    other = maps.clone()
    other[0] = -other[0]
    found = pairs_of({"logits": maps}, {"logits": other}, size=2)
    wanted = (maps.argmax(1) == other.argmax(1)).double().mean()
    assert found.agreement == pytest.approx(float(wanted))

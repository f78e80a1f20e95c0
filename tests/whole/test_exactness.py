"""Real architectures at half of their parameters, with the promises of the benchmark of the same name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fxprune
from benchmarks.common import zoo
from benchmarks.common.audit import macs, params, removed_channels, restorable, units_removed
from fxprune.budget.cost import cost_model
from tests.support.marks import sampled
from tests.support.weights import fingerprint, randomise

#: `benchmarks/exactness.py` has all.
FAST = sampled(zoo.select(fast=True), 6)
ATTENTIVE = [entry for entry in zoo.select(fast=True) if entry.attention]
SIZE = {"image": 96, "text": 16}
OTHER = {"image": 128, "text": 24}


def _batch(entry: zoo.Entry, count: int, seed: int, size: dict[str, int] = SIZE) -> Any:
    fixed = entry.kind == "image" and entry.other is None  # position embeddings
    return entry.batch(count, seed, entry.size if fixed else size[entry.kind])


def _arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((), batch) if isinstance(batch, dict) else ((batch,), {})


@pytest.mark.parametrize("entry", FAST, ids=lambda entry: entry.name)
@pytest.mark.slow
def test_half_of_the_parameters(entry: zoo.Entry) -> None:
    model, batch = entry.build(), _batch(entry, 4, 0)
    randomise(model, 0, *_arguments(batch))
    before = fingerprint(model)
    shapes = entry.dynamic_shapes() if entry.other is not None else None
    pruned = fxprune.compile(
        model, [batch], 0.5, method="magnitude", recover=None, round_to=1, dynamic_shapes=shapes, progress=False
    )
    report = fxprune.report(pruned)
    assert report.verified is True
    assert fingerprint(model) == before

    limit = report.params[0] // 2
    coupling = fxprune.couple(fxprune.capture(model, *_arguments(batch)))
    removed = removed_channels(coupling, report.plan.keep)
    assert params(pruned) == report.params[1] <= limit
    assert macs(pruned, _batch(entry, 1, 0)) == report.macs[1]
    assert not restorable(coupling, cost_model(coupling), removed, {0: limit})

    unseen = _arguments(_batch(entry, 3, 7))
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        certificate = fxprune.verify(coupling, removed, pruned, unseen, dtype=dtype)
        assert certificate.verified is not False and certificate.max_error <= tolerance, certificate
        assert certificate.verified or (dtype is torch.float32 and "rounding" in certificate.note)  # a faint channel

    sizes = [SIZE, OTHER] if entry.other is not None else [SIZE]
    for other in [_batch(entry, count, 3, size) for count in (1, 3) for size in sizes]:
        want, got = zoo.call(model, other), zoo.call(pruned, other)
        assert type(got) is type(want)
        assert [t.shape for t in zoo.tensors(got)] == [t.shape for t in zoo.tensors(want)]

    half = zoo.tensors(zoo.call(pruned.to(torch.bfloat16), zoo.cast(_batch(entry, 1, 3), torch.bfloat16)))
    assert {t.dtype for t in half} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("entry", "kind"),
    sampled([(entry, kind) for entry in ATTENTIVE for kind in ("head", "head_dim")], 5),
    ids=lambda value: getattr(value, "name", value),
)
@pytest.mark.slow
def test_heads_and_their_dimensions_go(entry: zoo.Entry, kind: str) -> None:
    model, batch = entry.build(), _batch(entry, 4, 0)
    randomise(model, 0, *_arguments(batch))
    options: Any = {"units": (kind,), "method": "magnitude", "recover": None, "dynamic_shapes": {}, "progress": False}
    report = fxprune.report(fxprune.compile(model, [batch], ratios=0.5, **options))
    coupling = fxprune.couple(fxprune.capture(model, *_arguments(batch), dynamic_shapes={}))
    assert report.verified is True
    assert units_removed(coupling, removed_channels(coupling, report.plan.keep)).get(kind, 0) > 0


def test_the_count_from_outside_sees_into_torch_s_fast_path() -> None:
    layer, x = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.randn(3, 5, 8)
    coupling = fxprune.couple(fxprune.capture(layer, (x,)))
    assert macs(layer, x) == cost_model(coupling).of(coupling.removed_mask([])).macs

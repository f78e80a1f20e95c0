"""SPvR: Algorithm 1, Eq. 2 and 3, stages, and what `compile` makes of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

import fxprune
from benchmarks.common.scenes import UNet, scenes
from fxprune._base.errors import ScorerError
from fxprune.capturing.captured import capture
from fxprune.capturing.inputs import PlainInputs
from fxprune.coupling.blocks import with_blocks
from fxprune.coupling.interpreter import couple
from fxprune.coupling.selection import Selection
from fxprune.scoring import score
from fxprune.scoring.engine.families import families, round_scores
from fxprune.scoring.kl import divergence
from fxprune.scoring.scorer import Context
from fxprune.scoring.spvr import Spvr, assign, correlations, disagreement
from fxprune.twin.interpreter import Run
from tests.models.fn import Fn
from tests.support.marks import sampled
from tests.support.pruning import prepared
from tests.support.weights import randomise


def _logits(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


@pytest.mark.parametrize(
    ("masked", "loss", "kl"),
    [((0.1, 0.6, 0.3), 1.3, 0.20), ((0.01, 0.1, 0.89), 0.29, 0.32), ((0.1, 0.8, 0.1), 1.5, 0.78)],
)
def test_the_paper_s_worked_example(masked: tuple[float, ...], loss: float, kl: float) -> None:
    dense = _logits(0.1, 0.3, 0.6)
    assert disagreement(dense, _logits(*masked)) == pytest.approx(loss)
    # natural logarithms give 0.208, 0.323 and 0.781: the text cuts the first to 0.20
    assert math.trunc(divergence(dense, _logits(*masked)) * 100) / 100 == pytest.approx(kl, abs=0.011)


def test_positions_are_averaged_and_samples_summed() -> None:
    dense, masked = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6)
    pixels = [
        disagreement(dense[b, :, i, j][None], masked[b, :, i, j][None])
        for b in range(3)
        for i in range(5)
        for j in range(6)
    ]
    assert disagreement(dense, masked) == pytest.approx(sum(pixels) / 30)
    tokens = dense.flatten(2).transpose(1, 2), masked.flatten(2).transpose(1, 2)
    assert disagreement(*tokens) == pytest.approx(sum(pixels) / 30)


def test_algorithm_1() -> None:
    correlation = torch.tensor(
        [[1.0, 0.2, 0.9, -1.0], [0.2, 1.0, 0.5, 0.1], [0.9, 0.5, 1.0, 0.3], [-1.0, 0.1, 0.3, 1.0]]
    )
    assert [s.tolist() for s in assign(correlation, 2)] == [[0, 2], [1, 3]]  # signed: -1 is far away
    assert [s.tolist() for s in assign(correlation, 3)] == [[0, 1, 2], [3]]
    assert [s.tolist() for s in assign(correlation, 1)] == [[0], [1], [2], [3]]


def test_correlation_is_over_samples_wherever_the_batch_lies() -> None:
    """Tokens first, samples second, inside the model."""
    model = Fn(
        lambda m, x: m.b(m.a(x.transpose(0, 1)).relu()).transpose(0, 1).mean(1), a=nn.Linear(3, 6), b=nn.Linear(6, 2)
    )
    x = torch.randn(12, 5, 3, dtype=torch.float64)
    coupling = prepared(model, (x[:4],))[1]
    found = correlations(Context(coupling, PlainInputs([(x[:7],), (x[7:],)])))["a"]
    sums = model.a(x).relu().abs().sum(1).detach().numpy()
    np.testing.assert_allclose(found.numpy(), np.corrcoef(sums.T), atol=1e-9)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_unit_is_in_one_set(size: int) -> None:
    sets = assign(torch.rand(11, 11) * 2 - 1, size)
    assert sorted(np.concatenate(sets).tolist()) == list(range(11))
    assert [len(s) for s in sets[:-1]] == [size] * (len(sets) - 1)


def test_correlation_of_maps_is_of_their_absolute_sums() -> None:
    model = Fn(lambda m, x: m.b(m.a(x).relu()).mean((2, 3)), a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(6, 2, 3))
    x = torch.randn(12, 3, 9, 9, dtype=torch.float64)
    coupling = prepared(model, (x[:4],))[1]
    nn.init.zeros_(model.a.weight[2])
    nn.init.constant_(model.a.bias[2], -1.0)  # a dead unit
    found = correlations(Context(coupling, PlainInputs([(x[:5],), (x[5:],)])))["a"]
    maps = model.a(x).relu().abs().sum((2, 3)).detach().numpy()
    with np.errstate(invalid="ignore"):
        expected = np.nan_to_num(np.corrcoef(maps.T))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)
    assert found[2].abs().sum() == 0


def test_score_is_that_of_the_unit_s_set() -> None:
    model = Fn(lambda m, x: m.b(m.a(x).relu()), a=nn.Linear(5, 7), b=nn.Linear(7, 3))
    x = torch.randn(40, 5, dtype=torch.float64)
    coupling = prepared(model, (x[:4],))[1]
    (found,) = score(coupling, PlainInputs([(x[:25],), (x[25:],)]), Spvr(group_size=2)).values()
    sets = assign(correlations(Context(coupling, PlainInputs([(x,)])))["a"], 2)
    (dense,) = Run(Selection.nothing(coupling))((x,))
    for part in sets:
        (masked,) = Run(Selection(coupling, coupling.removed_mask(coupling.groups[0].units[part])))((x,))
        torch.testing.assert_close(found[part], torch.full((len(part),), disagreement(dense, masked)).double())


@pytest.mark.slow
def test_families_are_what_identity_shortcuts_join() -> None:
    x = torch.randn(2, 3, 32, 32)
    found = families(couple(capture(torchvision.models.resnet18(), (x,))).groups)
    assert found[0] == ("conv1", "layer1.0.conv1", "layer1.1.conv1")
    assert found[1] == ("layer2.0.conv1", "layer2.0.conv2", "layer2.1.conv1")
    assert len(found) == 4
    assert families(couple(capture(torchvision.models.vgg11(), (x,))).groups) == []
    blocks = with_blocks(couple(capture(torchvision.models.resnet18(), (x,)))).groups
    assert any(group.kind == "block" for group in blocks)
    assert {frozenset(f) for f in families(blocks)} == {frozenset(f) for f in found}, (
        "a block is ranked by its own score"
    )


@pytest.mark.slow
def test_layers_of_a_stage_shrink_in_step() -> None:
    groups = couple(capture(torchvision.models.resnet18(), (torch.randn(2, 3, 32, 32),))).groups
    generator = torch.Generator().manual_seed(0)
    scores = {g.name: torch.rand(len(g.units), generator=generator, dtype=torch.float64) for g in groups}
    found = round_scores(groups, scores)
    for family in families(groups):
        cut = float(found[family[0]].median())
        kept = {name: int((found[name] > cut).sum()) for name in family}
        assert len(set(kept.values())) == 1
        for name in family:
            removed = found[name] <= cut
            assert scores[name][removed].max() <= scores[name][~removed].min()  # each its own least
            assert (found[name] <= scores[name] + 1e-12).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"group_size": 0}, "group_size must be"), ({"group_size": 1.5}, "group_size"), ({"propagate": "x"}, "propagate")],
)
def test_malformed_options_are_refused(options: dict[str, object], message: str) -> None:
    model = Fn(lambda m, x: m.b(m.a(x).relu()), a=nn.Linear(5, 7), b=nn.Linear(7, 3))
    coupling = prepared(model, (torch.randn(4, 5, dtype=torch.float64),))[1]
    with pytest.raises(ScorerError, match=message):
        score(coupling, [], Spvr(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize("propagate", sampled(["coupling", "stage"], 2))
@pytest.mark.slow
def test_compile_collapses_and_draws_weights_anew(propagate: str) -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=4, width_per_group=64)
    x = [torch.randn(8, 3, 32, 32)]
    method = Spvr(group_size=64, propagate=propagate)  # type: ignore[arg-type]
    options: Any = {"method": method, "dynamic_shapes": {}, "progress": False, "seed": 3}
    one, two = (fxprune.compile(model, x, 0.05, **options) for _ in range(2))
    report = fxprune.report(one)
    assert sum(p.numel() for p in one.parameters()) == report.params[1] <= 0.05 * report.params[0]
    assert report.verified is not False
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    bias = one.get_parameter("fc.bias")
    assert not torch.equal(bias, model.fc.bias)
    assert one(x[0]).shape == (8, 4)


def test_dense_prediction() -> None:
    model = Fn(
        lambda m, x: m.c(m.b(m.a(x).relu()).relu()),
        a=nn.Conv2d(3, 8, 3, padding=1),
        b=nn.Conv2d(8, 8, 3, padding=1),
        c=nn.Conv2d(8, 4, 1),
    )
    pruned = fxprune.compile(model, [torch.randn(6, 3, 12, 12)], 0.5, method="spvr", progress=False)
    assert pruned(torch.randn(2, 3, 20, 20)[..., :12, :12]).shape == (2, 4, 12, 12)
    assert fxprune.report(pruned).verified is True


def test_what_cannot_be_drawn_anew_is_reported() -> None:
    scale = nn.Parameter(torch.ones(7))
    model = Fn(lambda m, x: m.b(m.a(x).relu() * m.scale), a=nn.Linear(5, 7), b=nn.Linear(7, 3), scale=scale)
    pruned = fxprune.compile(model, [torch.randn(8, 5)], 0.6, method="l2", min_keep=1, recover="reinit", progress=False)
    assert fxprune.report(pruned).skipped == ("scale: no reset_parameters() draws it anew",)
    assert torch.equal(pruned.get_parameter("scale"), torch.ones(len(pruned.get_parameter("scale"))))


@pytest.mark.slow
def test_dense_prediction_from_scores_to_a_smaller_network() -> None:
    """The U-Net of `benchmarks/segmentation.py`: scores as whole masked passes give them, then a budget and new weights."""
    torch.manual_seed(0)
    images, _ = scenes(6)
    model = UNet(4)
    randomise(model, 0, (images,))
    model.eval()
    coupling = couple(capture(model, (images,)))
    found = score(coupling, PlainInputs([[images]]), Spvr(group_size=3))
    related = correlations(Context(coupling, PlainInputs([[images]])))
    with torch.no_grad():
        dense = model(images)
        for group in coupling.groups[::3]:
            for part in assign(related[group.name], 3):
                masked = Run(Selection(coupling, coupling.removed_mask(group.units[part])))([images])[0]
                assert torch.allclose(
                    found[group.name][part], torch.tensor(disagreement(dense, masked), dtype=torch.float64), atol=1e-5
                )
    pruned = fxprune.compile(model, [images], 0.4, method="spvr", progress=False)
    assert sum(p.numel() for p in pruned.parameters()) <= 0.4 * sum(p.numel() for p in model.parameters())
    assert pruned(images).shape == dense.shape

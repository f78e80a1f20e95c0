"""The engine of masked outputs, against a whole masked pass for every set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from fxprune.capturing.inputs import PlainInputs
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.scoring.engine.masking import masked_scores
from fxprune.scoring.engine.suffix import Suffix
from fxprune.scoring.scorer import Context
from fxprune.scoring.spvr import disagreement
from fxprune.twin.interpreter import Run
from tests.models.smooth import NETWORKS
from tests.support.marks import but_slow
from tests.support.pruning import prepared
from tests.support.tensors import random


class Inverted(nn.Module):
    """Convolutions with batch norms, a depthwise one, a skip, a split, in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(True))
        self.block = nn.Sequential(
            nn.Conv2d(8, 16, 1),
            nn.BatchNorm2d(16),
            nn.SiLU(True),
            nn.Conv2d(16, 16, 3, padding=1, groups=16),
            nn.BatchNorm2d(16),
            nn.ReLU(True),
            nn.Conv2d(16, 8, 1),
            nn.BatchNorm2d(8, affine=False),
        )
        self.two = nn.Conv2d(8, 12, 1)
        self.norm, self.head = nn.GroupNorm(2, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.block(x)
        a, b = self.two(x).chunk(2, dim=1)
        return self.head(self.norm(a * b.sigmoid()).mean((2, 3)))


CASES = {**NETWORKS, "inverted": lambda: (Inverted().double(), random(4, 3, 7, 7))}


def _pairs(coupling: Coupling) -> dict[str, list[np.ndarray]]:
    return {
        g.name: [np.arange(i, min(i + 2, len(g.units))) for i in range(0, len(g.units), 2)] for g in coupling.groups
    }


def _left(coupling: Coupling, units: np.ndarray) -> bool:
    """Whether group norms keep a channel."""
    flags = coupling.removed_mask(units)
    norms = [a for a in coupling.axes if a.layer == "norm"]
    return all(not flags[a.labels].any(axis=1).all() for a in norms)


def _naive(coupling: Coupling, batches: list[Tensor], sets: dict[str, list[np.ndarray]]) -> dict[str, Tensor]:
    found = {name: torch.zeros(len(parts), dtype=torch.float64) for name, parts in sets.items()}
    for x in batches:
        (dense,) = Run(Selection.nothing(coupling))((x,))
        for group in coupling.groups:
            for i, part in enumerate(sets[group.name]):
                if not _left(coupling, group.units[part]):
                    found[group.name][i] = float("inf")
                    continue
                (masked,) = Run(Selection(coupling, coupling.removed_mask(group.units[part])))((x,))
                found[group.name][i] += disagreement(dense, masked)
    return found


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("limit", but_slow([1 << 30, 20_000], quick=(20_000,)))
@pytest.mark.slow
def test_scores_are_those_of_whole_masked_passes(name: str, limit: int) -> None:
    model, x = CASES[name]()
    coupling = prepared(model, (x,))[1]
    batches, sets = [x, x.flip(0) * 1.5], _pairs(coupling)
    context = Context(coupling, PlainInputs([(b,) for b in batches]), memory_limit=limit)
    found = masked_scores(context, sets, disagreement, "test")
    for group, expected in _naive(coupling, batches, sets).items():
        torch.testing.assert_close(found[group], expected, rtol=0, atol=1e-9)
    assert any(bool(((score > 0.01) & score.isfinite()).any()) for score in found.values())


def test_several_masks_share_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = CASES["inverted"]()
    coupling = prepared(model, (x,))[1]
    suffix, passes = Suffix(coupling), []
    original = Suffix._run
    monkeypatch.setattr(Suffix, "_run", lambda s, c, masks, d: passes.append(len(masks)) or original(s, c, masks, d))
    group = next(g for g in coupling.groups if g.name == "block.0")
    cone = suffix.cone(coupling.units[group.units])
    masks = [coupling.removed_mask([unit]) for unit in group.units]
    outputs = list(suffix.masked(cone, masks, suffix.dense((x,), cone.frontier), len(x)))
    assert passes == [16, 1]  # the last mask alone proves that they leave each other alone
    list(suffix.masked(cone, masks, suffix.dense((x,), cone.frontier), len(x)))
    assert passes == [16, 1, 16]
    for mask, (output,) in zip(masks, outputs, strict=True):
        torch.testing.assert_close(output, Run(Selection(coupling, mask))((x,))[0])


def test_only_what_lies_behind_a_mask_runs() -> None:
    model, x = CASES["inverted"]()
    coupling = prepared(model, (x,))[1]
    group = next(g for g in coupling.groups if g.name == "two")
    names = {str(node.target) for node in Suffix(coupling).cone(coupling.units[group.units]).nodes}
    assert "aten.linear.default" in names
    assert "aten.conv2d.default" not in names


def test_the_original_is_left_alone() -> None:
    model, x = CASES["inverted"]()
    before, given = {k: v.clone() for k, v in model.state_dict().items()}, x.clone()
    coupling = prepared(model, (x,))[1]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    masked_scores(Context(coupling, PlainInputs([(x,)])), _pairs(coupling), disagreement, "test")
    assert torch.equal(x, given)
    assert before.keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("cut", [0, 7])
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path: Path, cut: int) -> None:
    model, x = CASES["inverted"]()
    coupling = prepared(model, (x,))[1]
    inputs, sets = PlainInputs([(x,), (x * 2,)]), _pairs(coupling)
    context = Context(coupling, inputs, cache_dir=tmp_path / "cache")
    calls: list[int] = []
    stop = 0

    def measure(dense: object, masked: object) -> float:
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return disagreement(dense, masked)

    whole = masked_scores(Context(coupling, inputs), sets, measure, "test")
    total = len(calls)
    stop, calls[:] = total * 3 // 4, []
    with pytest.raises(KeyboardInterrupt):
        masked_scores(context, sets, measure, "test")
    (file,) = (tmp_path / "cache").iterdir()
    if cut:  # killed in the middle of a line
        file.write_bytes(file.read_bytes()[:-cut])
    stop, calls[:] = 0, []
    resumed = masked_scores(context, sets, measure, "test")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert total // 4 <= len(calls) < total
    calls[:] = []
    again = masked_scores(context, sets, measure, "test")
    assert not calls
    assert all(torch.equal(again[name], whole[name]) for name in whole)


@pytest.mark.parametrize("change", ["weights", "data", "method", "line"])
def test_what_belongs_to_another_run_is_not_read(tmp_path: Path, change: str) -> None:
    model, x = CASES["chain"]()
    coupling = prepared(model, (x,))[1]
    sets, calls = _pairs(coupling), []

    def measure(dense: object, masked: object) -> float:
        calls.append(1)
        return disagreement(dense, masked)

    masked_scores(Context(coupling, PlainInputs([(x,)]), cache_dir=tmp_path), sets, measure, "a")
    count = len(calls)
    if change == "weights":
        next(model.parameters()).data.mul_(1.5)
    if change == "line":
        (file,) = tmp_path.iterdir()
        file.write_text(file.read_text().replace("0x1", "0x2", 1))
    data = x * 2 if change == "data" else x
    context = Context(coupling, PlainInputs([(data,)]), cache_dir=tmp_path)
    masked_scores(context, sets, measure, "b" if change == "method" else "a")
    assert len(calls) == 2 * count


@pytest.mark.slow
def test_batches_are_cut_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torchvision.models.resnet18(num_classes=4).double()
    x = random(6, 3, 32, 32)
    coupling = prepared(model, (x[:2],))[1]
    sizes = []
    original = Suffix.dense
    monkeypatch.setattr(Suffix, "dense", lambda s, flat, w: sizes.append(len(flat[0])) or original(s, flat, w))
    group = next(g for g in coupling.groups if g.name.startswith("layer4"))
    sets = {group.name: [np.arange(4)]}
    whole = masked_scores(Context(coupling, PlainInputs([(x,)])), sets, disagreement, "test")
    few = Context(coupling, PlainInputs([(x,)]), memory_limit=1 << 14)
    torch.testing.assert_close(masked_scores(few, sets, disagreement, "test"), whole)
    assert sizes[0] == 6
    assert len(sizes) > 2
    assert max(sizes[1:]) < 6


class Pooled(nn.Module):
    """Takes one token of each sample by number, as text encoders do: the batch's own positions are an index."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(self.up(x).relu()).tanh()
        return self.head(y[torch.arange(len(x)), x[..., 0].argmax(1)])


class Centred(nn.Module):
    """Samples see each other."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.up, self.head, self.how = nn.Linear(4, 8), nn.Linear(8, 3), how

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.up(x).relu()).mean(1)
        return y - y.mean(0, keepdim=True) if self.how == "mean" else y.cumsum(0)


@pytest.mark.parametrize("build", [Pooled, lambda: Centred("mean"), lambda: Centred("cumsum")])
def test_masks_do_not_mix_where_samples_have_numbers_or_see_each_other(build: Any) -> None:
    torch.manual_seed(0)
    model, x = build().double(), random(4, 5, 4)
    coupling = prepared(model, (x,))[1]
    sets = _pairs(coupling)
    found = masked_scores(Context(coupling, PlainInputs([(x,)])), sets, disagreement, "test")
    for group, expected in _naive(coupling, [x], sets).items():
        torch.testing.assert_close(found[group], expected, rtol=0, atol=1e-9)

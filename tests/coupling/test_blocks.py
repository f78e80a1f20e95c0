"""Whole residual branches as units: found from the graph, scored, budgeted for, gone without a trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import fxprune
from fxprune.capturing.captured import capture
from fxprune.coupling.blocks import has_blocks, with_blocks
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.interpreter import couple
from fxprune.scoring.scorer import registered
from fxprune.scoring.spvr import disagreement
from tests.models.fn import Fn
from tests.support.marks import but_slow, sampled
from tests.support.pruning import prepared
from tests.support.weights import randomise

IMAGES = (3, 3, 32, 32)
KINDS = ("channel", "head", "head_dim", "block")


class Network(nn.Module):
    """A stem, two residual blocks of convolutions, one of them two layers deep, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.one = nn.Sequential(
            nn.Conv2d(8, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
        )
        self.two = nn.Sequential(
            nn.Conv2d(8, 4, 1),
            nn.ReLU(),
            nn.Conv2d(4, 5, 3, padding=1),
            nn.BatchNorm2d(5),
            nn.ReLU(),
            nn.Conv2d(5, 8, 1),
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = (x + self.one(x)).relu()
        x = (x + self.two(x)).relu()
        return self.head(x.mean((2, 3)))


def _network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model, x = Network(), torch.randn(6, 3, 8, 8)
    randomise(model, 0, (x,))
    return model.eval(), x


def _blocks(coupling: Coupling) -> list[str]:
    return [group.name for group in coupling.groups if group.kind == "block"]


def _encoder(first: bool) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        layer = nn.TransformerEncoderLayer(12, 3, 16, batch_first=True, norm_first=first)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    return build


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "basic blocks": (torchvision.models.resnet18, IMAGES, 8),
    "inverted bottlenecks with gates": (torchvision.models.efficientnet_b0, IMAGES, 9),
    "layer scale behind a permutation": (torchvision.models.convnext_tiny, IMAGES, 18),
    "shifted windows": (torchvision.models.swin_t, IMAGES, 24),
    "pre-norm transformer": (_encoder(True), (3, 5, 12), 4),
    "post-norm transformer": (_encoder(False), (3, 5, 12), 4),
}


@pytest.mark.parametrize("name", sampled(ARCHITECTURES, 6, [name for name in ARCHITECTURES if "transformer" in name]))
@pytest.mark.slow
def test_every_branch_is_one_block_and_goes_whole(name: str) -> None:
    build, shape, count = ARCHITECTURES[name]
    torch.manual_seed(0)
    model, x = build().eval(), torch.randn(shape)
    randomise(model, 0, (x,))
    blocks = _blocks(with_blocks(couple(capture(model, (x,), dynamic_shapes={}))))
    assert len(blocks) == count
    chosen = blocks[1::2]
    pruned = fxprune.compile(
        model, [x], ratios=dict.fromkeys(chosen, 1.0), units="block", recover=None, progress=False, dynamic_shapes={}
    )
    report = fxprune.report(pruned)
    assert report.verified
    assert {row.name for row in report.groups if row.kind == "block" and not row.after} == set(chosen)
    assert sum(p.numel() for p in pruned.parameters()) == report.params[1] < report.params[0]


def test_the_other_units_are_what_they_were() -> None:
    model, x = _network()
    coupling = couple(capture(model, (x,), dynamic_shapes={}))
    before = str(coupling)
    blocks = with_blocks(coupling)
    assert str(coupling) == before and not has_blocks(coupling) and has_blocks(blocks)
    mine = {(g.name, g.kind, len(g.units), g.producers, g.consumers) for g in coupling.groups}
    assert mine == {
        (g.name, g.kind, len(g.units), g.producers, g.consumers) for g in blocks.groups if g.kind != "block"
    }


def test_what_is_left_of_a_branch_is_what_it_gives_without_input() -> None:
    model, x = _network()
    pruned = fxprune.compile(
        model, [x], ratios={"one.0:block": 1.0}, units="block", recover=None, progress=False, dynamic_shapes={}
    )
    model.one[3].weight.data.zero_()
    assert torch.allclose(pruned(x), model(x), atol=1e-5)
    assert not any(name.startswith(("one.0", "one.3")) for name, _ in pruned.named_parameters())


def test_a_constant_is_compared_as_it_is_stored() -> None:
    """The branch ends in a batch norm: its constant is rounded to float32, which is no fault."""
    model, x = _network()
    pruned = fxprune.compile(
        model, [x], ratios={"one.0:block": 1.0}, units=KINDS, recover=None, verify_dtype=torch.float64, progress=False
    )
    report = fxprune.report(pruned)
    assert report.verified and report.max_error < 1e-12 and "one.0" in report.collapsed


def test_layers_that_share_weights_are_one_block() -> None:
    model = Fn(
        lambda m, x: m.c((y := x + m.b(m.a(x).relu())) + m.b(m.a(y).relu())),
        a=nn.Linear(4, 6),
        b=nn.Linear(6, 4),
        c=nn.Linear(4, 2),
    )
    _, coupling = prepared(model, (torch.randn(3, 4),))
    assert len(_blocks(with_blocks(coupling))) == 1


def test_branches_that_share_their_heads_are_blocks_of_their_own() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        for layer in (m.one, m.two):
            hidden = layer.up(x).unflatten(-1, (3, 4)) * m.gate[:, None]
            x = x + layer.down(hidden.flatten(-2))
        return m.out(x)

    model = Fn(
        forward,
        one=nn.ModuleDict({"up": nn.Linear(5, 12), "down": nn.Linear(12, 5)}),
        two=nn.ModuleDict({"up": nn.Linear(5, 12), "down": nn.Linear(12, 5)}),
        gate=nn.Parameter(torch.ones(3)),
        out=nn.Linear(5, 2),
    )
    _, coupling = prepared(model, (torch.randn(4, 5),))
    assert _blocks(with_blocks(coupling)) == ["one.up:block", "two.up:block"]


def test_a_branch_on_the_only_path_is_no_block() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    _, coupling = prepared(model, (torch.randn(3, 4),))
    assert not has_blocks(with_blocks(coupling))


def test_a_parameter_that_varies_along_the_tokens_keeps_its_branch() -> None:
    model = Fn(  # the branch adds a position table: without input it is no constant for each channel
        lambda m, x: m.c(x + (m.b(m.a(x).relu()) + m.table)),
        a=nn.Linear(4, 6),
        b=nn.Linear(6, 4),
        c=nn.Linear(4, 2),
        table=nn.Parameter(torch.randn(5, 4)),
    )
    _, coupling = prepared(model, (torch.randn(3, 5, 4),))
    assert not has_blocks(with_blocks(coupling))


@pytest.mark.parametrize("share", but_slow([0.9, 0.7, 0.5], quick=(0.7,)))
def test_blocks_and_channels_meet_a_budget_together(share: float) -> None:
    model, x = _network()
    total = sum(p.numel() for p in model.parameters())
    options: Any = {"method": "l1", "recover": "covariance", "dynamic_shapes": {}, "progress": False}
    pruned = fxprune.compile(model, [x], share, units=KINDS, **options)
    report = fxprune.report(pruned)
    assert report.verified and share * total - 60 < report.params[1] <= share * total


@pytest.mark.slow
def test_a_block_comes_back_with_the_units_that_fit() -> None:
    """A budget between a block with one unit and the block with all is used: the block does not weigh all at once."""
    model, x = _network()
    one = fxprune.compile(
        model, [x], 0.72, method="l1", units="channel", min_keep=1, recover=None, progress=False, dynamic_shapes={}
    )
    both = fxprune.compile(
        model, [x], 0.72, method="l1", units=("channel", "block"), recover=None, progress=False, dynamic_shapes={}
    )
    sizes = [fxprune.report(p).params[1] for p in (one, both)]
    assert abs(sizes[0] - sizes[1]) < 60


def test_spvr_ranks_a_block_by_what_masking_it_does() -> None:
    model, x = _network()
    coupling = with_blocks(couple(capture(model, (x,), dynamic_shapes={})))
    scores = fxprune.score(coupling, [[x]], "spvr")
    with torch.no_grad():
        dense = model(x)
        model.one[3].weight.zero_()
        assert float(scores["one.0:block"]) == pytest.approx(disagreement(dense, model(x)), abs=1e-5)


@pytest.mark.slow
def test_spvr_takes_the_least_blocks_and_the_plan_is_kept(tmp_path: Path) -> None:
    model, x = _network()
    coupling = with_blocks(couple(capture(model, (x,), dynamic_shapes={})))
    scores = fxprune.score(coupling, [[x]], "spvr")
    least = min(_blocks(coupling), key=lambda name: float(scores[name]))
    pruned = fxprune.compile(
        model, [x], 0.95, method="spvr", units="block", recover=None, progress=False, dynamic_shapes={}
    )
    report = fxprune.report(pruned)
    assert [row.name for row in report.groups if row.kind == "block" and not row.after] == [least]
    assert report.plan is not None
    assert torch.equal(fxprune.apply(model, report.plan)(x), pruned(x))
    fxprune.save(pruned, tmp_path / "out")
    assert torch.equal(fxprune.load(tmp_path / "out", model)(x), pruned(x))


@pytest.mark.parametrize(
    "method", but_slow(sorted(registered().keys() - {"vbp", "reap"}), quick=("variance", "taylor"))
)  # vbp is for the hidden units of MLPs, reap for experts
def test_every_criterion_scores_blocks(method: str) -> None:
    model, x = _network()
    labels = torch.arange(len(x)) % 4
    pruned = fxprune.compile(model, [(x, labels)], 0.7, method=method, units=KINDS, progress=False, dynamic_shapes={})
    report = fxprune.report(pruned)
    assert report.verified is not False and report.params[1] <= 0.7 * report.params[0]


class OnePlus(nn.Module):
    """RMS norm as Gemma writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


@pytest.mark.parametrize(("norm", "home"), [(nn.LayerNorm(8), "norm.bias"), (OnePlus(), "b.bias")])
def test_a_norm_behind_a_branch_is_over_the_channels_that_stay(norm: nn.Module, home: str) -> None:
    """Swin v2, Gemma 2: the branch ends in a norm; its constant changes with the stream's channels."""
    model = Fn(
        lambda m, x: m.head(torch.relu((x := m.stem(x)) + m.norm(m.b(m.a(x).relu())))),
        stem=nn.Linear(4, 8),
        a=nn.Linear(8, 6),
        b=nn.Linear(6, 8),
        norm=norm,
        head=nn.Linear(8, 2),
    )
    x = torch.randn(3, 6, 4)
    randomise(model, 0, (x,))
    pruned = fxprune.compile(
        model,
        [x],
        ratios={"a:block": 1.0, "stem": 0.5},
        units=KINDS,
        recover=None,
        progress=False,
        verify_dtype=torch.float64,
    )
    assert fxprune.report(pruned).verified
    assert {name: tuple(t.shape) for name, t in pruned.state_dict().items()} == {
        "stem.weight": (4, 4),
        "stem.bias": (4,),
        home: (4,),
        "head.weight": (2, 4),
        "head.bias": (2,),
    }


MOVES: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "transposed there and back": (lambda y: y.transpose(1, 2).contiguous().transpose(1, 2), True),
    "folded and unfolded": (lambda y: y.unflatten(1, (2, 3)).flatten(1, 2), True),
    "rolled along the tokens": (lambda y: y.roll(2, 1), True),
    "flipped": (lambda y: y.flip(1), True),
    "cut and padded dimension": (lambda y: y.unsqueeze(1)[:, :, :6].squeeze(1), True),
    "rolled flat": (lambda y: y.roll(2), False),
    "rolled along the channels": (lambda y: y.roll(1, 2), False),
    "channels among the tokens": (lambda y: y.reshape(len(y), 4, 6).transpose(1, 2), False),
    "a mean over the channels taken off": (lambda y: y - y.mean(-1, keepdim=True), True),
    "the length of its channels divided by": (lambda y: torch.nn.functional.normalize(y, dim=-1), True),
    "RMS norm written out": (lambda y: y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6), True),
    "layer norm": (lambda y: torch.nn.functional.layer_norm(y, (4,)), True),
    "layer norm over tokens and channels": (lambda y: torch.nn.functional.layer_norm(y, (6, 4)), False),
    "group norm": (lambda y: torch.nn.functional.group_norm(y.transpose(1, 2), 2).transpose(1, 2), True),
    "weighed by its mean over the tokens": (lambda y: y * y.mean(1, keepdim=True).sigmoid(), True),
    "weighed by its mean, that dimension gone": (lambda y: y * y.mean(1).tanh().unsqueeze(1), True),
    "a sum over the tokens": (lambda y: y * y.sum(1, keepdim=True).sigmoid(), False),
    "weighed by its maximum": (lambda y: y + y.amax(1, keepdim=True), True),
}


@pytest.mark.parametrize("name", but_slow(MOVES, quick=("rolled along the tokens", "rolled flat", "group norm")))
def test_a_constant_is_followed_through_what_moves_it(name: str) -> None:
    move, goes = MOVES[name]
    model = Fn(lambda m, x: m.c(x + move(m.b(m.a(x).relu()))), a=nn.Linear(4, 6), b=nn.Linear(6, 4), c=nn.Linear(4, 2))
    x = torch.randn(3, 6, 4, dtype=torch.float64)
    _, coupling = prepared(model, (x,))
    blocks = _blocks(with_blocks(coupling))
    assert bool(blocks) is goes
    if goes:
        pruned = fxprune.compile(
            model, [x], ratios={blocks[0]: 1.0}, units="block", recover=None, progress=False, dynamic_shapes={}
        )
        assert fxprune.report(pruned).verified and not any(n.startswith("a.") for n in pruned.state_dict())


class Single(nn.Module):
    """Residual branches of one layer each: of a convolution, of a layer behind a norm, and beside a shortcut of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8), nn.ReLU())
        self.down, self.short = nn.Conv2d(8, 6, 3, stride=2, padding=1), nn.Conv2d(8, 6, 1, stride=2)
        self.norm, self.line, self.head = nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv(x)
        x = self.short(x) + self.down(x)  # without both nothing is left
        x = x.flatten(2).transpose(1, 2)
        x = x + self.line(self.norm(x)).tanh()
        return self.head(x.mean(1))


def test_a_branch_of_one_layer_is_a_block() -> None:
    _, coupling = prepared(Single(), (torch.randn(3, 3, 8, 8, dtype=torch.float64),))
    blocks = [group for group in with_blocks(coupling).groups if group.kind == "block"]
    assert [group.name for group in blocks] == ["conv.0:block", "line:block"]
    assert {g.name for g in with_blocks(coupling).groups if g.kind != "block"} == {g.name for g in coupling.groups}


@pytest.mark.parametrize("method", but_slow(["l2", "random", "spvr", "variance", "joint", "nisp", "kl"], quick=("l2",)))
@pytest.mark.parametrize("recover", but_slow([None, "covariance", "sequential"], quick=(None,)))
def test_branches_of_one_layer_go(method: str, recover: str | None) -> None:
    model = randomise(Single().eval(), 0, (torch.randn(8, 3, 8, 8),))
    batches = [torch.randn(8, 3, 8, 8) for _ in range(2)]
    options: dict[str, Any] = {
        "method": method,
        "recover": recover,
        "progress": False,
        "units": ("block",),
        "min_keep": 0,
    }
    found = fxprune.compile(model, batches, fxprune.Budget(params=0.8), **options)
    report = fxprune.report(found)
    assert report.verified and report.collapsed
    if recover is None:
        with torch.no_grad():
            for name in {layer.partition(".")[0] for layer in report.collapsed}:
                (model.conv[0] if name == "conv" else model.line).weight.zero_()
        torch.testing.assert_close(found(batches[0]), model(batches[0]), rtol=1e-4, atol=1e-5)
        assert torch.equal(fxprune.apply(model, report.plan)(batches[0]), found(batches[0]))

"""Sizes that a forward has as numbers, what only dead code reads, and what only training may read: it stays, the rest goes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from tests.models.fn import Fn
from tests.support.zeroed import with_zeros

#: Sizes that are free take as long to capture as all the rest.
FIXED: dict[str, Any] = {"form": "module", "dynamic_shapes": {}}
OPTIONS: dict[str, Any] = {**FIXED, "method": "l1", "recover": None, "progress": False}


def small(model: nn.Module, data: Any, budget: float = 0.7, **options: Any) -> Any:
    """Returns a model in its own class, which computes what it did with zeros."""
    model = model.double().eval()
    found = fxprune.compile(model, data, budget, **OPTIONS, **options)
    zeroed = with_zeros(copy.deepcopy(model), found.report.plan.keep)
    torch.testing.assert_close(found(data), zeroed(data), rtol=1e-9, atol=1e-9)
    return found


def linear(change: Callable[[Tensor], Tensor], columns: int) -> nn.Module:
    torch.manual_seed(0)
    parts = {"h": nn.Linear(8, 12), "m": nn.Linear(columns, 10), "o": nn.Linear(10, 4)}
    return Fn(lambda m, x: m.o(m.m(change(m.h(x))).relu()), **parts)


X = torch.randn(16, 8, dtype=torch.float64)


def _first_three_zero(h: Tensor) -> Tensor:
    y = h.clone()
    y[:, :3] = 0.0
    return y


@pytest.mark.parametrize(
    ("change", "columns", "goes"),
    [
        (lambda h: F.pad(h, (6, 6)), 24, True),
        (lambda h: F.pad(h, (-1, 3)), 14, False),
        (lambda h: h.repeat(1, 2), 24, True),
        (lambda h: torch.tile(h, (2,)), 24, True),
        (lambda h: h.repeat_interleave(3, 1), 36, True),
        (lambda h: torch.cat([h[:, ::2], h[:, 1::2], h], -1), 24, False),
        (lambda h: h.tanh().roll(3, 1), 12, False),
        (lambda h: torch.stack([h, h.tanh()], 2).flatten(1), 24, True),
        (lambda h: torch.constant_pad_nd(h, (2, 3)), 17, True),
        (lambda h: h * h[:, 5].unsqueeze(1), 12, True),
        (lambda h: h * h.select(1, 3)[:, None], 12, True),
        (lambda h: h * h.unbind(1)[5][:, None], 12, False),
        (lambda h: torch.cat(h.tensor_split(3, 1)[::-1], 1), 12, False),
        (_first_three_zero, 12, True),
    ],
    ids=(
        "pad",
        "crop",
        "repeat",
        "tile",
        "interleaved",
        "every second",
        "rolled",
        "stacked",
        "pad by another name",
        "one",
        "selected",
        "unbound",
        "tensor_split",
        "set",
    ),
)
def test_a_number_stays_and_what_it_does_not_count_goes(
    change: Callable[[Tensor], Tensor], columns: int, goes: bool
) -> None:
    model = linear(change, columns)
    found = small(model, X, 0.6 if goes else 0.75)
    assert (found.h.out_features < 12) == goes and found.m.out_features < 10
    said = fxprune.explain(model, [X], **FIXED)
    there = {group.name for group in said.groups if dict(said.held).get(group.name, 0) < group.units}
    assert ("h" in there) == goes


class Shortcut(nn.Module):
    """The shortcut of ResNets for CIFAR without weights (He et al. 2015, option A)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)
        self.b, self.head = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = self.b(self.a(x).relu()) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        found: Tensor = self.head(y.relu().mean((2, 3)))
        return found


def test_a_shortcut_that_pads_comes_home() -> None:
    torch.manual_seed(0)
    found = small(Shortcut(), torch.randn(4, 3, 8, 8, dtype=torch.float64), 0.5)
    assert found.a.out_channels < 16


def test_what_dead_code_reads_stays() -> None:
    torch.manual_seed(0)
    parts = {"a": nn.Linear(8, 24), "unread": nn.Linear(24, 4), "m": nn.Linear(24, 24), "o": nn.Linear(24, 4)}

    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.a(x).relu()
        m.unread(h)
        out: Tensor = m.o(m.m(h).relu())
        return out

    found = small(Fn(forward, **parts), X)
    assert found.a.out_features == 24 and found.m.out_features < 24


class Targets(nn.Module):
    """What trains wants targets."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.m, self.aux, self.o = nn.Linear(8, 24), nn.Linear(24, 30), nn.Linear(24, 4), nn.Linear(30, 4)

    def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        h = self.a(x).relu()
        out: Tensor = self.o(self.m(h).relu())
        if not self.training:
            return out
        return (out - target).square().mean() + (self.aux(h) - target).square().mean()


def test_what_training_may_read_stays_unless_a_call_tells() -> None:
    torch.manual_seed(0)
    model, target = Targets(), torch.randn(16, 4, dtype=torch.float64)
    found = small(model, X)
    assert found.a.out_features == 24 and found.m.out_features < 30
    assert any("aux.weight may be used with there stays: all layers" in note for note in found.report.notes)
    found.train()(X, target).backward()
    told = fxprune.compile(model, [X], 0.5, **OPTIONS, forward_args=lambda x: ((x, target), {}))
    assert told.a.out_features == told.aux.in_features < 24
    told.train()(X, target).backward()


def test_a_norm_that_training_alone_uses_stays() -> None:
    class Normed(Targets):
        def __init__(self) -> None:
            super().__init__()
            self.aux = nn.BatchNorm1d(24, affine=False)

        def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
            h = self.a(x).relu()
            out: Tensor = self.o(self.m(h).relu())
            return (out - target).square().mean() + self.aux(h).square().mean() if self.training else out

    torch.manual_seed(0)
    found = small(Normed(), X)
    assert found.a.out_features == 24 and found.m.out_features < 30
    found.train()(X, torch.randn(16, 4, dtype=torch.float64)).backward()


def test_without_values_or_a_class_nothing_comes_home() -> None:
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 4))
    program = torch.export.export(nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 4)).double(), (X,))
    for model, why in ((empty, "on the meta device"), (program, "has no class to come back to")):
        with pytest.raises(fxprune.RestoreError, match=why):
            fxprune.explain(model, [X], form="module")
        with pytest.raises(fxprune.RestoreError, match=why):
            fxprune.compile(model, [X], 0.7, **{**OPTIONS, "method": "random"}, verify=False)


def test_explain_takes_the_kinds_that_may_go() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True).eval()
    x = torch.randn(2, 5, 16)
    held = {
        units: {name for name, _ in fxprune.explain(model, [x], units=units, **FIXED).held}
        for units in ("channel", "head", "head_dim")
    }
    wanted = {"channel": set(), "head": {"self_attn:head"}, "head_dim": {"self_attn:head_dim", "self_attn:head_dim#2"}}
    assert held == wanted

"""A branch that may vanish: what moves its values, pools or mixes them on the way to the addition keeps them constant."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from tests.support.marks import but_slow

Tail = Callable[[Tensor], Tensor]


class Branch(nn.Module):
    """x + tail(norm(conv(conv(x)))), [b, 8, 6, 6]."""

    def __init__(self, tail: Tail) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.a, self.b, self.norm = nn.Conv2d(8, 5, 3, padding=1), nn.Conv2d(5, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.tail, self.head = tail, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.tail(self.norm(self.b(self.a(x).relu())))).mean((2, 3)))


VANISH: dict[str, Tail] = {
    "max pool": lambda y: F.max_pool2d(y, 3, 1, 1),
    "max pool over the rest": lambda y: F.adaptive_max_pool2d(y, 6),
    "max pool with where it was": lambda y: F.max_pool2d(y, 3, 1, 1, return_indices=True)[0],
    "mean, padding not counted": lambda y: F.avg_pool2d(y, 3, 1, 1, count_include_pad=False),
    "mean without padding": lambda y: F.avg_pool2d(F.pad(y, (1, 1, 1, 1), "replicate"), 3, 1),
    "mean with a ceiling": lambda y: F.interpolate(F.avg_pool2d(y, 4, 4, ceil_mode=True), (6, 6)),
    "mean of the rest": lambda y: F.adaptive_avg_pool2d(y, 6),
    "bilinear": lambda y: F.interpolate(F.adaptive_avg_pool2d(y, 2), (6, 6), mode="bilinear", align_corners=False),
    "bicubic": lambda y: F.interpolate(F.adaptive_avg_pool2d(y, 3), (6, 6), mode="bicubic"),
    "reflected": lambda y: F.pad(y[:, :, 1:5, 1:5], (1, 1, 1, 1), "reflect"),
    "rolled": lambda y: y.roll((1, 2), (2, 3)),
    "flipped": lambda y: y.flip(2),
    "moved": lambda y: y.movedim(1, 3).movedim(-1, 1),
    "swapped": lambda y: y.swapaxes(1, 2).swapaxes(2, 1),
    "selected": lambda y: y[:, :, 2].unsqueeze(2).expand(-1, -1, 6, -1),
    "indexed": lambda y: y.movedim(1, 3)[:, [1, 0, 3, 2, 5, 4]].movedim(3, 1),
    "repeated": lambda y: y[:, :, :2].repeat(1, 1, 3, 1),
    "repeated by element": lambda y: y[:, :, :2].repeat_interleave(3, 2),
    "split": lambda y: F.interpolate(y.split((2, 4), 2)[1], (6, 6)),
    "largest": lambda y: y.max(3, keepdim=True)[0].expand(-1, -1, -1, 6),
    "least": lambda y: y.amin((2, 3), keepdim=True).expand(-1, -1, 6, 6),
    "shuffled": lambda y: F.channel_shuffle(y, 2),
    "in windows": lambda y: y.unfold(2, 1, 1)[..., 0],
    "dropped": lambda y: F.alpha_dropout(F.dropout(y, 0.5, False), 0.5, False),
}

#: What is left of the branch is no constant for each channel, so a channel stays.
STAY: dict[str, Tail] = {
    "padding counted": lambda y: F.avg_pool2d(y, 3, 1, 1),
    "padded with zeros": lambda y: F.pad(y[:, :, 1:5, 1:5], (1, 1, 1, 1)),
    "a divisor of its own": lambda y: F.avg_pool2d(y, 3, 1, 1, divisor_override=2),
    "where it was": lambda y: F.max_pool2d(y, 3, 1, 1, return_indices=True)[1].float(),
    "a table": lambda y: y + torch.arange(36.0).reshape(6, 6),
    "rolled flat": lambda y: y.roll(3),
    "its own channels repeated": lambda y: y[:, :4].repeat(1, 2, 1, 1),
}


def compiled(tail: Tail) -> nn.Module:
    torch.manual_seed(0)
    model = Branch(tail).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.3)
        model.norm.running_mean.normal_()
    return fxprune.compile(
        model,
        [torch.randn(8, 3, 6, 6)],
        ratios={"a": 1.0, "default": 0.0},
        min_keep=0,
        method="l1",
        recover=None,
        verify_dtype=torch.float64,
        progress=False,
    )


@pytest.mark.parametrize("name", but_slow(VANISH, quick=("max pool", "mean of the rest", "rolled", "largest")))
def test_the_branch_goes_and_the_twin_agrees(name: str) -> None:
    pruned = compiled(VANISH[name])
    assert not any(key.startswith("a.") for key in pruned.state_dict())
    assert fxprune.report(pruned).verified is True


@pytest.mark.parametrize("name", but_slow(STAY, quick=("padding counted", "rolled flat")))
def test_a_channel_stays(name: str) -> None:
    pruned = compiled(STAY[name])
    assert any(key.startswith("a.") for key in pruned.state_dict())
    assert fxprune.report(pruned).verified is True


@pytest.mark.slow
def test_a_recurrent_layer_keeps_a_unit_and_nothing_breaks() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.rnn, self.head = nn.Linear(3, 8), nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(self.stem(x))[0][:, -1])

    torch.manual_seed(0)
    pruned = fxprune.compile(Net().eval(), [torch.randn(4, 5, 3)], 0.4, min_keep=0, method="l1", progress=False)
    assert fxprune.report(pruned).verified is True

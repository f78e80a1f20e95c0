"""What reshapes and moves dimensions in tiny models."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.models.fn import Fn
from tests.models.ops.case import Case

A = torch.ops.aten
X, T = (3, 3, 6, 4), (3, 4, 5)


def _lin(function, width: int, inner: int) -> Fn:
    """``function`` of a linear layer's result, then a linear layer."""
    return Fn(lambda m, x: m.b(function(m.a(x))), a=nn.Linear(5, width), b=nn.Linear(inner, 2))


def _conv(function, width: int, inner: int) -> Fn:
    return Fn(lambda m, x: m.b(function(m.a(x))), a=nn.Conv2d(3, width, 1), b=nn.Conv2d(inner, 2, 1))


PLAIN = ["6 channel: a.weight[0] a.bias[0] b.weight[1]"]

MOVES = {
    "permute": lambda y: y.permute(1, 0, 2).permute(1, 0, 2),
    "permute, negative": lambda y: y.permute(-1, 0, 1).permute(1, 2, 0),
    "transpose": lambda y: y.transpose(-1, 1).sin().transpose(2, 1),
    "swapaxes": lambda y: A.swapaxes(A.swapaxes(y, 1, 2).sin(), -1, 1),
    "swapdims": lambda y: A.swapdims(A.swapdims(y, 1, 2).sin(), -1, 1),
    "movedim.int": lambda y: A.movedim.int(A.movedim.int(y, -1, 0).sin(), 0, -1),
    "movedim.intlist": lambda y: A.movedim.intlist(A.movedim.intlist(y, [2, 0], [0, 1]).sin(), [0, 1], [2, 0]),
    "moveaxis.int": lambda y: A.moveaxis.int(A.moveaxis.int(y, 2, 0).sin(), 0, 2),
    "moveaxis.intlist": lambda y: A.moveaxis.intlist(A.moveaxis.intlist(y, [2, 0], [0, 1]).sin(), [0, 1], [2, 0]),
    "t": lambda y: y[:, 0].t().sin().t().unsqueeze(1),
    "unsqueeze": lambda y: y.unsqueeze(-2).sin().squeeze(-2),
    "squeeze": lambda y: A.squeeze.default(y.unsqueeze(1).unsqueeze(-1).sin()),
    "squeeze of nothing": lambda y: A.squeeze.dim(y.sin(), 2),
    "squeeze.dims": lambda y: A.squeeze.dims(y.unsqueeze(1).unsqueeze(-1).sin(), [1, -1]),
    "reshape over tokens": lambda y: y.reshape(-1, 6).sin().reshape(-1, 4, 6),
    "view": lambda y: y.view(-1, 2, 2, 6).sin().view(-1, 4, 6),
    "view.default": lambda y: A.view.default(y, [y.shape[0], 4, 1, 6]).sin().flatten(2),
    "_unsafe_view": lambda y: A._unsafe_view(y, [y.shape[0], 4, 1, 6]).sin().flatten(2),
}

CASES = [
    *(Case(name, lambda f=f: _lin(f, 6, 6), [T], PLAIN) for name, f in MOVES.items()),
    Case("split into heads", lambda: _lin(lambda y: y.unflatten(2, (3, 4)).sin().flatten(2), 12, 12), [T], [
            "3 channel: a.weight[0]x4 a.bias[0]x4 b.weight[1]x4",
            "4 channel: a.weight[0]x3 a.bias[0]x3 b.weight[1]x3",
        ]),
    Case("split into heads, dimensions first",
         lambda: _lin(lambda y: y.unflatten(2, (3, 4)).transpose(2, 3).flatten(2), 12, 12), [T], [
            "3 channel: a.weight[0]x4 a.bias[0]x4 b.weight[1]x4",
            "4 channel: a.weight[0]x3 a.bias[0]x3 b.weight[1]x3",
        ]),
    Case("split twice", lambda: _lin(lambda y: y.unflatten(2, (2, 3, 2)).sin().flatten(2), 12, 12), [T], [
            "2 channel: a.weight[0]x6 a.bias[0]x6 b.weight[1]x6",
            "3 channel: a.weight[0]x4 a.bias[0]x4 b.weight[1]x4",
            "2 channel: a.weight[0]x6 a.bias[0]x6 b.weight[1]x6",
        ]),
    Case("flatten before a classifier",
         lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.Flatten(), nn.Linear(6 * 24, 2)), [X], ["6 channel: 0.weight[0] 0.bias[0] 2.weight[1]x24"]),
    Case("a reshape across the boundary of factors",
         lambda: _lin(lambda y: y.unflatten(2, (3, 4)).reshape(-1, 4, 2, 6).sin().flatten(2), 12, 12), [T], [
            "2 channel: a.weight[0]x6 a.bias[0]x6 b.weight[1]x6",
        ]),
    Case("channels into the batch", lambda: Fn(lambda m, x: m.b(m.a(x).reshape(-1, 4).reshape(-1, 4, 6)),
                                               a=nn.Linear(5, 6), b=nn.Linear(6, 2)), [T], ["2 channel: a.weight[0]x3 a.bias[0]x3 b.weight[1]x3"]),
    Case("windows",
         lambda: Fn(lambda m, x: m.b(
             m.a(x).permute(0, 2, 3, 1).reshape(-1, 3, 2, 2, 2, 6).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 6)),
             a=nn.Conv2d(3, 6, 1), b=nn.Linear(6, 2)), [X], ["6 channel: a.weight[0] a.bias[0] b.weight[1]"]),
    Case("expand", lambda: Fn(lambda m, x: m.b((m.a(x).unsqueeze(2).expand(-1, -1, 3, -1)).flatten(2)),
                              a=nn.Linear(5, 4), b=nn.Linear(12, 2)), [T], ["4 channel: a.weight[0] a.bias[0] b.weight[1]x3", "3 channel: b.weight[1]x4"]),
    Case("expand of a parameter", lambda: Fn(lambda m, x: m.b(torch.cat([m.c.expand(x.shape[0], -1, -1), m.a(x)], 1)),
                                             c=nn.Parameter(torch.randn(1, 1, 6)), a=nn.Linear(5, 6), b=nn.Linear(6, 2)),
         [T], ["6 channel: c[2] a.weight[0] a.bias[0] b.weight[1]"]),
    Case("expand of a size of one is kept", lambda: Fn(lambda m, x: m.b(m.a(x)[..., :1].expand(-1, -1, 6)),
                                                       a=nn.Linear(5, 3), b=nn.Linear(6, 2)), [T], ["2 channel: a.weight[0] a.bias[0]", "6 channel: b.weight[1]"]),
    Case("repeat", lambda: _lin(lambda y: y.repeat(1, 1, 3), 4, 12), [T], ["4 channel: a.weight[0] a.bias[0] b.weight[1]x3", "3 channel: b.weight[1]x4"]),
    Case("repeat to a new dimension", lambda: _lin(lambda y: y[:, 0].repeat(2, 1, 1).transpose(0, 1).flatten(1), 4, 8),
         [T], ["4 channel: a.weight[0] a.bias[0] b.weight[1]x2", "2 channel: b.weight[1]x4"]),
    Case("tile", lambda: _lin(lambda y: A.tile.default(y, [3]), 4, 12), [T], ["4 channel: a.weight[0] a.bias[0] b.weight[1]x3", "3 channel: b.weight[1]x4"]),
    Case("repeat_interleave", lambda: _lin(lambda y: y.repeat_interleave(3, dim=-1), 4, 12), [T], ["4 channel: a.weight[0] a.bias[0] b.weight[1]x3", "3 channel: b.weight[1]x4"]),
    Case("repeat_interleave of heads",
         lambda: _lin(lambda y: y.unflatten(2, (2, 3)).repeat_interleave(2, dim=2).flatten(2), 6, 12), [T], [
            "2 channel: a.weight[0]x3 a.bias[0]x3 b.weight[1]x6",
            "3 channel: a.weight[0]x2 a.bias[0]x2 b.weight[1]x4",
            "2 channel: b.weight[1]x6",
        ]),
    Case("pixel_shuffle", lambda: nn.Sequential(nn.Conv2d(3, 12, 1), nn.PixelShuffle(2), nn.Conv2d(3, 2, 1)), [X], ["3 channel: 0.weight[0]x4 0.bias[0]x4 2.weight[1]"]),
    Case("pixel_unshuffle", lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.PixelUnshuffle(2), nn.Conv2d(16, 2, 1)), [X],
         ["4 channel: 0.weight[0] 0.bias[0] 2.weight[1]x4"]),
    Case("channel_shuffle",
         lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.ChannelShuffle(2), nn.Conv2d(6, 6, 1, groups=3), nn.Conv2d(6, 2, 1)),
         [X], [
            "2 channel: 0.weight[0]x3 0.bias[0]x3 2.weight[1]",
            "3 channel: 0.weight[0]x2 0.bias[0]x2 2.weight[0]x2 2.bias[0]x2 3.weight[1]x2",
            "2 channel: 2.weight[0]x3 2.bias[0]x3 3.weight[1]x3",
        ]),
    Case("channel_shuffle by reshape", lambda: _conv(
        lambda y: y.reshape(-1, 2, 3, 6, 4).transpose(1, 2).reshape(-1, 6, 6, 4).sin(), 6, 6), [X], [
            "2 channel: a.weight[0]x3 a.bias[0]x3 b.weight[1]x3",
            "3 channel: a.weight[0]x2 a.bias[0]x2 b.weight[1]x2",
        ]),
    Case("im2col", lambda: Fn(lambda m, x: m.b(F.unfold(m.a(x), 3)), a=nn.Conv2d(3, 4, 1), b=nn.Conv1d(36, 2, 1)), [X],
         ["4 channel: a.weight[0] a.bias[0] b.weight[1]x9"]),
    Case("col2im", lambda: Fn(lambda m, x: m.b(F.fold(m.a(x), (4, 3), 2)), a=nn.Conv1d(3, 16, 1), b=nn.Conv2d(4, 2, 1)),
         [(3, 3, 6)], ["4 channel: a.weight[0]x4 a.bias[0]x4 b.weight[1]"]),
    Case("unfold of space", lambda: Fn(lambda m, x: m.b(m.a(x).unfold(2, 2, 2).flatten(2).transpose(1, 2)),
                                       a=nn.Conv2d(3, 4, 1), b=nn.Linear(4, 2)), [X], ["4 channel: a.weight[0] a.bias[0] b.weight[1]"]),
    Case("unfold of channels", lambda: _lin(lambda y: y.unfold(2, 2, 2).flatten(2), 6, 6), [T], []),
]  # fmt: skip

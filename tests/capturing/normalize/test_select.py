"""Fused projections: q, k and v are sliced out of the projection's axis, whatever the layout in between."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune.capturing.captured import capture
from tests.models.fn import Fn
from tests.support.capturing import check, nodes, ops

B, N, H, D = 2, 5, 4, 3
C = H * D
BATCHES = ((torch.randn(1, N, C).double(),), (torch.randn(5, N, C).double(),))


def x() -> Tensor:
    return torch.randn(B, N, C, dtype=torch.float64)


def timm(qkv: Tensor) -> tuple[Tensor, ...]:
    return qkv.reshape(-1, N, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)


def swin(qkv: Tensor) -> tuple[Tensor, ...]:
    qkv = qkv.reshape(qkv.shape[0], N, 3, H, D).permute(2, 0, 3, 1, 4)
    return qkv[0], qkv[1], qkv[2]


def mha(qkv: Tensor) -> tuple[Tensor, ...]:
    qkv = qkv.unflatten(-1, (3, C)).unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()
    return qkv[0], qkv[1], qkv[2]


def per_head(qkv: Tensor) -> tuple[Tensor, ...]:
    qkv = qkv.view(-1, N, H, 3, D)
    return qkv[..., 0, :], qkv[..., 1, :], qkv[..., -1, :]


def interleaved(qkv: Tensor) -> tuple[Tensor, ...]:
    return qkv.reshape(-1, N, C, 3).movedim(-1, 0).unbind(0)


def merged_heads(qkv: Tensor) -> tuple[Tensor, ...]:
    qkv = qkv.reshape(-1, N, 3, H, D).permute(2, 0, 3, 1, 4)
    return qkv.reshape(3, -1, N, D).unbind(0)


def swapped(qkv: Tensor) -> tuple[Tensor, ...]:
    return qkv.reshape(-1, N, 3, H, D).transpose(1, 3).unbind(dim=2)


def unsqueezed(qkv: Tensor) -> tuple[Tensor, ...]:
    return qkv.reshape(-1, 1, N, 3, H, D).swapaxes(3, 1).squeeze(3).unsqueeze(-1).unbind(1)


LAYOUTS = {
    "timm": (timm, [(0, 12), (12, 24), (24, 36)]),
    "swin": (swin, [(0, 12), (12, 24), (24, 36)]),
    "mha": (mha, [(0, 12), (12, 24), (24, 36)]),
    "per_head": (per_head, [(0, 3), (3, 6), (6, 9)]),
    "interleaved": (interleaved, [(0, 1), (1, 2), (2, 3)]),
    "merged_heads": (merged_heads, [(0, 12), (12, 24), (24, 36)]),
    "swapped": (swapped, [(0, 12), (12, 24), (24, 36)]),
    "unsqueezed": (unsqueezed, [(0, 12), (12, 24), (24, 36)]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_selects_become_slices(name):
    layout, bounds = LAYOUTS[name]

    def forward(self: Any, x: Tensor) -> Any:
        q, k, v = layout(self.qkv(x))
        return q * 2, k + 1, v.sin()

    captured = check(Fn(forward, qkv=nn.Linear(C, 3 * C)), x(), others=BATCHES)
    assert not nodes(captured, "select.int")
    slices = nodes(captured, "slice.Tensor")
    assert [tuple(node.args[2:4]) for node in slices] == bounds
    rows = (10007, N)
    joint = {(*rows, 3 * C), (*rows, H, 3 * D) if name == "per_head" else (*rows, C, 3)}
    infos = [captured.info[n] for n in captured.module.graph.nodes if n.op == "call_function"]
    shapes = {info.shape for info in infos if not isinstance(info, int)}
    assert {shape for shape in shapes if prod(shape) == prod(rows) * 3 * C} <= joint


def test_multihead_attention_is_cut_without_moving_an_axis():
    model = nn.MultiheadAttention(C, H, batch_first=True)
    captured = capture(Fn(lambda self, x: self.m(x, x, x, need_weights=False)[0], m=model), (x().float(),))
    assert [node.args[0].target for node in nodes(captured, "slice.Tensor")] == [torch.ops.aten.linear.default] * 3
    assert not set(ops(captured)) & {"unsqueeze.default", "squeeze.dims", "select.int", "contiguous.default"}


def test_other_users_of_the_view_keep_it():
    def forward(self: Any, x: Tensor) -> Any:
        qkv = self.qkv(x).reshape(-1, N, 3, H, D).permute(2, 0, 3, 1, 4)
        return qkv[0], qkv.sum(0)

    captured = check(Fn(forward, qkv=nn.Linear(C, 3 * C)), x(), others=BATCHES)
    assert len(nodes(captured, "slice.Tensor")) == 1
    assert any(captured.info[n].shape == (3, 10007, H, N, D) for n in nodes(captured, "permute.default"))


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y.reshape(-1, N * C, 3)[..., 1],  # two axes merged and split anew
        lambda y: y[:, 1],  # a dimension that no reshape made
        lambda y: y.reshape(-1, N, 3, C).sin()[:, :, 1],  # computed with in between
        lambda y: y.reshape(-1, N, 3, C).roll(1, 2)[:, :, 1],
    ],
)
def test_other_selects_stay(function):
    model = Fn(lambda self, x: function(self.qkv(x)) + 1, qkv=nn.Linear(C, 3 * C))
    captured = check(model, x(), others=BATCHES)
    assert len(nodes(captured, "select.int")) == 1


def test_what_is_written_to_later_stays():
    def forward(self: Any, x: Tensor) -> Any:
        y = self.qkv(x)
        part = y.view(-1, N, 3, C)[:, :, 1]
        y[:, ::2].add_(1)
        return part + 1

    check(Fn(forward, qkv=nn.Linear(C, 3 * C)), x(), others=BATCHES)


def test_attention_scale_is_pinned():
    sdpa = nn.functional.scaled_dot_product_attention
    for scale, expected in ((None, D**-0.5), (0.3, 0.3)):
        model = Fn(lambda self, x, s=scale: sdpa(*timm(self.qkv(x)), scale=s), qkv=nn.Linear(C, 3 * C))
        captured = check(model, x(), others=BATCHES)
        (node,) = nodes(captured, "scaled_dot_product_attention.default")
        assert node.kwargs["scale"] == pytest.approx(expected, rel=1e-15)

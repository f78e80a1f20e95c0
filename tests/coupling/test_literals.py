"""Literals are cut for each reader, and tie nothing together."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.compiler.by_hand import verify
from tests.models.fn import Fn
from tests.support.compiling import couple_fn, pruned_at
from tests.support.pruning import certify, prepared, removal
from tests.support.tensors import random


def test_constants_are_cut_for_each_reader_and_stay_unsaved() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        scale = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], dtype=x.dtype)
        return m.c((m.b((m.a(x) * scale * m.table).relu()) * scale).relu())

    model = Fn(forward, a=nn.Linear(5, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 2))
    model.register_buffer("table", torch.rand(6, dtype=torch.float64) + 1, persistent=False)
    args = (random(4, 5),)
    coupling = prepared(model, args)[1]
    assert len(coupling.groups) == 2, "layers that share a constant are not tied to each other"
    pruned = pruned_at(coupling, 0.7)
    assert verify(coupling, removal(coupling, 0, 0.7), pruned, (args, {})).verified is True
    assert set(pruned.state_dict()) == {f"{name}.{kind}" for name in "abc" for kind in ("weight", "bias")}
    moved = copy.deepcopy(pruned).float().to("meta")
    assert moved(torch.empty(3, 5, device="meta")).dtype == torch.float32


def _rotary(m: Any, x: Tensor) -> Tensor:
    b, n, _ = x.shape
    angles = torch.outer(torch.arange(n, dtype=x.dtype), 100 ** -torch.arange(0, 1, 1 / 3, dtype=x.dtype))
    cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))
    for i in "01":
        q, k, v = (m.get_submodule(f + i)(x).view(b, n, 2, 6).transpose(1, 2) for f in "qkv")
        q, k = (z * cos + torch.cat([-z[..., 3:], z[..., :3]], -1) * sin for z in (q, k))
        x = x + m.get_submodule("o" + i)(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))
    return x


def test_rotary_tables_do_not_unite_the_layers() -> None:
    parts = {f + i: nn.Linear(*((12, 5) if f == "o" else (5, 12))) for i in "01" for f in "qkvo"}
    args = (random(3, 4, 5),)
    coupling = couple_fn(_rotary, *args, **parts)
    kinds = sorted((len(group.units), group.kind) for group in coupling.groups)
    assert kinds == sorted([(2, "head"), (3, "head_dim"), (6, "head_dim")] * 2)
    assert certify(coupling, args, removal(coupling, 0, 0.5)).verified is True

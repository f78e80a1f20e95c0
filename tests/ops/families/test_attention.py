"""Scaled dot-product attention: heads and head dimensions are channels like any other."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models.ops.attention import CASES
from tests.models.ops.case import Case
from tests.support.compiling import couple_fn
from tests.support.marks import but_slow
from tests.support.pruning import certify, check_case, groups_of, removal
from tests.support.tensors import random


@pytest.mark.parametrize("case", but_slow(CASES, CASES[::3]), ids=lambda c: c.name)
def test_rule(case: Case) -> None:
    check_case(case)


def test_grouped_queries_by_expansion_lose_groups_and_positions_in_groups() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = m.q(x).view(b, n, 4, 3).transpose(1, 2)
        k, v = (f(x).view(b, n, 2, 3).transpose(1, 2) for f in (m.k, m.v))
        k, v = (z[:, :, None].expand(b, 2, 2, n, 3).reshape(b, 4, n, 3) for z in (k, v))
        return m.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))

    args = (random(3, 4, 5),)
    coupling = couple_fn(forward, *args, q=nn.Linear(5, 12), k=nn.Linear(5, 6), v=nn.Linear(5, 6), o=nn.Linear(12, 2))
    kinds = {kind: [t for t in groups_of(coupling) if f" {kind}: q.weight[0]x6" in t] for kind in ("head", "kv_group")}
    assert [t.count("k.weight") for t in kinds["head"]] == [0], "the same query in every group"
    assert [t.count("k.weight") for t in kinds["kv_group"]] == [1], "whole groups with their key"
    assert certify(coupling, args, removal(coupling, 0, 0.5)).verified is True


def test_grouped_queries_in_one_weight_lose_groups_and_positions_in_groups() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (z.view(b, n, -1, 3).transpose(1, 2) for z in m.qkv(x).split([12, 6, 6], -1))
        found = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return m.o(found.transpose(1, 2).reshape(b, n, -1))

    args = (random(3, 4, 5),)
    coupling = couple_fn(forward, *args, qkv=nn.Linear(5, 24), o=nn.Linear(12, 2))
    found = {text for text in groups_of(coupling) if " head_dim" not in text}
    assert {text.partition(":")[0] for text in found} == {"2 head", "2 kv_group"}
    assert any("kv_group" in text and "qkv.weight[0]x12" in text for text in found)
    assert certify(coupling, args, removal(coupling, 0, 0.5)).verified is True

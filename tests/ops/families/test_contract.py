"""Sums of products."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune.capturing.captured import capture
from fxprune.coupling.interpreter import couple
from tests.models.fn import Fn
from tests.models.ops.case import Case
from tests.models.ops.contract import CASES
from tests.support.marks import but_slow
from tests.support.pruning import certify, check_case, groups_of
from tests.support.weights import randomise


@pytest.mark.parametrize("case", but_slow(CASES, CASES[::3]), ids=lambda c: c.name)
def test_rule(case: Case) -> None:
    check_case(case)


@pytest.mark.parametrize("library", ["aten", "transformers"])
def test_experts_that_multiply_sorted_tokens_share_their_widths(library: str) -> None:
    if library == "transformers":
        pytest.importorskip("transformers.integrations.moe")
    op = torch.ops.aten._grouped_mm if library == "aten" else torch.ops.transformers.grouped_mm_fallback
    try:
        with torch.device("meta"):  # where capture works
            op(torch.ones(4, 4), torch.ones(2, 4, 4), torch.ones(2, dtype=torch.int32))
    except RuntimeError:
        pytest.skip("this torch multiplies groups in bfloat16 only")

    def forward(m: Any, x: Tensor) -> Tensor:
        ends = torch.arange(1, 3, dtype=torch.int32) * (x.shape[0] // 2)
        return op(op(m.make(x), m.up, ends).relu(), m.down, ends)

    up, down = nn.Parameter(torch.randn(2, 16, 8)), nn.Parameter(torch.randn(2, 8, 4))
    model = randomise(Fn(forward, make=nn.Linear(5, 16), up=up, down=down)).eval()  # torch's op takes no float64
    args = (torch.randn(4, 5),)
    coupling = couple(capture(model, args))
    assert not coupling.unsupported
    assert sorted(groups_of(coupling)) == ["16 channel: up[1] make.weight[0] make.bias[0]", "8 channel: up[2] down[1]"]
    assert certify(coupling, args, coupling.removed_mask([0, 1, 2, 3, 16, 17, 18, 19])).verified

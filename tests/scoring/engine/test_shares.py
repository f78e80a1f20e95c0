"""How the scores of layers compare."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxprune.capturing.inputs import PlainInputs
from fxprune.scoring import score
from fxprune.scoring.engine.shares import layers_that, remaining_share
from fxprune.scoring.scorer import Context
from tests.models.fn import Fn
from tests.support.pruning import prepared


def test_the_remaining_share_is_lamp_times_the_layers() -> None:
    scores = {"g": torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)}
    shares = remaining_share(scores, {"g": 4.0})["g"]
    assert torch.allclose(shares, (6 + 4) * torch.tensor([3 / 3, 1 / 6, 2 / 5], dtype=torch.float64))
    assert not remaining_share({"g": torch.zeros(2)}, {"g": 1.0})["g"].isnan().any()


def test_an_outlier_leaves_the_other_units_their_shares() -> None:
    many, whole = [1.0] * 9, {"g": 0.0}
    found = [remaining_share({"g": torch.tensor([*many, x])}, whole)["g"] / (9 + x) for x in (4.0, 1e6)]
    assert torch.allclose(*found)
    sparse = remaining_share({"g": torch.tensor([0.0] * 18 + [1.0, 2.0])}, whole)["g"]
    assert torch.allclose(sparse[-2:], torch.tensor([1.0, 3.0]))  # only scores above zero tell what is usual


def test_layers_are_counted_on_both_sides_by_their_share() -> None:
    model = Fn(  # c reads a and b side by side, d reads b alone
        lambda m, x: (m.c(torch.cat([m.a(x), m.b(x)], 1)), m.d(m.b(x))),
        a=nn.Linear(5, 6),
        b=nn.Linear(5, 2),
        c=nn.Linear(8, 3),
        d=nn.Linear(2, 3),
    )
    coupling = prepared(model, (torch.randn(4, 5, dtype=torch.float64),))[1]
    context = Context(coupling, PlainInputs(()))
    assert layers_that(context, read=True) == pytest.approx({"a": 6 / 8, "b": 2 / 8 + 1})
    assert layers_that(context, read=False) == pytest.approx({"a": 1, "b": 1})


@pytest.mark.slow
def test_no_layer_of_a_dense_block_is_left_almost_empty() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 32, 1)
            self.norms = nn.ModuleList(nn.BatchNorm2d(32 + 8 * i) for i in range(8))
            self.grow = nn.ModuleList(nn.Conv2d(32 + 8 * i, 8, 3, padding=1) for i in range(8))
            self.head = nn.Conv2d(32 + 64, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            parts = [self.stem(x)]
            for norm, grow in zip(self.norms, self.grow, strict=True):
                parts.append(grow(norm(torch.cat(parts, 1)).relu()))
            return self.head(torch.cat(parts, 1))

    from fxprune.budget.budget import Budget
    from fxprune.budget.solver import solve

    coupling = prepared(Dense(), (torch.randn(2, 3, 4, 4, dtype=torch.float64),))[1]
    assert sorted(len(group.units) for group in coupling.groups) == [8] * 8 + [32]
    solution = solve(coupling, score(coupling, [], "magnitude"), Budget(params=0.5))
    slicer = coupling.slicer(solution.removed)
    kept = [slicer.count(coupling.parameter(f"grow.{i}.weight")[0]) for i in range(8)]
    assert slicer.count(coupling.parameter("stem.weight")[0]) >= 8 and min(kept) >= 2

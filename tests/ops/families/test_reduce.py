"""Reductions: a statistic over an axis that may shrink, or an axis that stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.compiler.by_hand import verify
from tests.models.blocks_tokens import Reduced
from tests.models.fn import Fn
from tests.models.networks import Network
from tests.models.ops.case import Case
from tests.models.ops.reduce import CASES, PARTS, POSITIONS, SCANS, Many
from tests.support import fuzzing
from tests.support.marks import but_slow
from tests.support.pruning import check, check_case, groups_of, prepared
from tests.support.tensors import random


def _coupled(functions: list[Callable[[Tensor], Tensor]], over_channels: bool, read: bool):
    torch.manual_seed(0)
    x = torch.randn(4, 6, 5, dtype=torch.float64)
    return prepared(Many(functions, over_channels, read), (x,))[1], (x,)


def _made(numbers: list[int], read: bool) -> list[str]:
    end = " readers.{i}.weight[1]" if read else ""
    return [f"6 channel: makers.{i}.weight[0] makers.{i}.bias[0]" + end.format(i=i) for i in numbers]


@pytest.mark.parametrize("keepdim", but_slow([False, True], quick=(False,)))
def test_over_tokens_channels_pass(keepdim: bool) -> None:
    functions = [lambda x, f=f: f(x, keepdim=keepdim) for f in PARTS.values()]
    coupling, args = _coupled(functions, over_channels=False, read=True)
    assert sorted(groups_of(coupling)) == sorted(_made(list(range(len(PARTS))), read=True))
    assert not coupling.statistics
    check(coupling, args)


@pytest.mark.parametrize("keepdim", but_slow([False, True], quick=(False,)))
def test_over_channels_it_is_a_statistic_or_they_stay(keepdim: bool) -> None:
    functions = [lambda x, f=f: f(x, keepdim=keepdim) for f in PARTS.values()]
    coupling, args = _coupled(functions, over_channels=True, read=False)
    free = [i for i, name in enumerate(PARTS) if name not in POSITIONS]
    assert sorted(groups_of(coupling)) == sorted(_made(free, read=False))
    assert len(coupling.statistics) == len(free)
    check(coupling, args)


@pytest.mark.slow
def test_scans_that_are_returned_keep_what_they_run_over() -> None:
    over, _ = _coupled([f for name, f in SCANS.items() if name != "topk"], over_channels=True, read=False)
    assert over.groups == ()
    coupling, args = _coupled(list(SCANS.values()), over_channels=False, read=True)
    assert sorted(groups_of(coupling)) == sorted(_made(list(range(len(SCANS))), read=True))
    check(coupling, args)


@pytest.mark.parametrize("case", but_slow(CASES, CASES[::3]), ids=lambda c: c.name)
def test_rule(case: Case) -> None:
    check_case(case)


@pytest.mark.parametrize("outputs", ["tensor", "dict"])
def test_an_axis_whose_positions_are_returned_is_no_statistic(outputs: str) -> None:
    # argmax freezes its axis; verification asked for a masked twin of it all the same
    network = Network("ids", 8, (Reduced("argmax"),), "mean", outputs=outputs)
    outcome = fuzzing.run(fuzzing.Case(network, fuzzing.Pruning(ratio=0.3, seed=2)))
    assert outcome.status == "verified", outcome.detail


class Peak(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.head = nn.Linear(4, 6), nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        peak, where = torch.relu(self.linear(x)).max(-1, keepdim=True)
        return self.head(peak) + where


def test_max_with_indices_verifies_beside_a_pruned_layer() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.peak = nn.Linear(4, 4), Peak()

        def forward(self, x: Tensor) -> Tensor:
            return self.peak(self.first(x))

    torch.manual_seed(0)
    x = torch.randn(4, 4, dtype=torch.float64)
    coupling, solution, pruned = fuzzing.compiled(Net().double().eval(), (x,), fuzzing.Pruning(ratio=0.5))
    assert len(solution.units) == 2
    assert verify(coupling, solution.removed, pruned, ((x,), {})).verified


@pytest.mark.parametrize("how", but_slow(["std", "var", "var_mean", "unbiased"], quick=("var",)))
@pytest.mark.parametrize("wanted", [{"ratios": 1.0}, {"budget": 0.35}, {"budget": 0.35, "min_keep": 0}])
def test_an_unbiased_variance_may_keep_one_channel(how: str, wanted: dict[str, Any]) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.up(x)
        spread = {
            "std": lambda: y.std(-1, keepdim=True),
            "var": lambda: y.var(-1, keepdim=True),
            "var_mean": lambda: torch.var_mean(y, -1, keepdim=True)[0],
            "unbiased": lambda: torch.var(y, (-1,), True, True),
        }[how]()
        return self.down(y / (spread + 0.1))

    model = Fn(forward, up=nn.Linear(4, 12, bias=False), down=nn.Linear(12, 3, bias=False)).double()
    pruned = fxprune.compile(model, [random(6, 4)], recover=None, progress=False, **wanted)
    assert fxprune.report(pruned).verified is True
    left = pruned.get_parameter("up.weight").shape[0]
    assert left == 1 if "ratios" in wanted else left > 0
    x, gone = random(6, 4), ~torch.isin(model.up.weight, pruned.get_parameter("up.weight")).all(1)
    with torch.no_grad():
        model.up.weight[gone] = 0
    torch.testing.assert_close(pruned(x), model(x))


def test_a_biased_variance_may_keep_one() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.up(x)
        return self.down(y / (y.var(-1, correction=0, keepdim=True) + 0.1))

    model = Fn(forward, up=nn.Linear(4, 12), down=nn.Linear(12, 3)).double()
    pruned = fxprune.compile(model, [random(6, 4)], ratios=1.0, recover=None, progress=False)
    assert pruned.get_parameter("up.weight").shape[0] == 1

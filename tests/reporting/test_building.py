"""The report of a compilation: what was there, what is left, and what was not verified."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import fxprune
from fxprune.results.record import Report
from tests.models.small import NETWORKS, Aside
from tests.support.marks import but_slow


def test_the_report_of_a_compilation() -> None:
    torch.manual_seed(0)
    model = Aside()
    pruned = fxprune.compile(model, [torch.randn(8, 3, 6, 6)], 0.5, recover=None, progress=False)
    found = fxprune.report(pruned)
    used = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("aside"))
    assert found.params == (used, sum(p.numel() for p in pruned.parameters()))
    assert found.params[1] <= used / 2 and found.dropped == 56 and found.verified is True
    assert [(row.name, row.kind, row.before) for row in found.groups] == [("conv", "channel", 8)]
    assert found.units_removed == 8 - found.groups[0].after == 8 - pruned.conv.out_channels
    assert {(row.tensor, row.axis, row.coordinates) for row in found.frozen} == {
        ("conv.weight", 1, 3),
        ("head.weight", 0, 5),
        ("head.bias", 0, 5),
    }
    assert found.plan is not None and found.plan.budget == {"params": 0.5}
    assert Report.from_dict(found.to_dict(), plan=found.plan) == found
    assert dataclasses.replace(found, plan=None) != found


def test_what_was_not_verified_says_so() -> None:
    pruned = fxprune.compile(Aside(), [torch.randn(8, 3, 6, 6)], 0.5, recover=None, verify=False, progress=False)
    found = fxprune.report(pruned)
    assert found.verified is None and "\n\nnot verified: not compared\nfidelity: " in str(found)


@pytest.mark.parametrize("name", but_slow(NETWORKS, quick=("residual",)))
@pytest.mark.parametrize("options", [{}, {"units": ("channel", "head", "block"), "min_keep": 0}])
def test_layers_add_up_to_the_whole(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    build, example = NETWORKS[name]
    pruned = fxprune.compile(build().double(), [example()], 0.4, recover=None, verify=False, progress=False, **options)
    found = fxprune.report(pruned)
    for whole, parts in ((found.params, "params"), (found.macs, "macs")):
        changes = [getattr(row, parts) for row in found.layers]
        assert whole == (sum(c[0] for c in changes), sum(c[1] for c in changes))
    own = {n: sum(p.numel() for p in m.parameters(recurse=False)) for n, m in pruned.named_modules()}
    left = {row.name: row.params[1] for row in found.layers if row.params[1]}
    assert {name: count for name, count in own.items() if count} == left or name == "transformer"  # tied

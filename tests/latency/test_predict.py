"""Predictions: calibrated by what was measured, monotone, and a channel costs what its layers take."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import fxprune
from fxprune.budget.budget import Budget
from fxprune.latency.layout import layout_of
from fxprune.latency.operation import Operation
from fxprune.latency.predict import Calibration, LatencyBound, LatencyModel
from fxprune.latency.table import Table
from tests.models import small
from tests.support.latency import made_up
from tests.support.pruning import coupling_of, linear_coupling, random_scores, removal


def test_calibration_passes_through_what_was_measured_and_never_falls() -> None:
    found = Calibration()
    assert found.ms(3.0) == 3.0
    found.add(10.0, 30.0)
    assert found.ms(5.0) == 15.0 and found.ms(20.0) == 60.0
    found.add(4.0, 20.0)
    assert found.ms(4.0) == 20.0 and found.ms(7.0) == 25.0 and found.ms(2.0) == 10.0
    found.add(4.0, 22.0)  # measured twice
    assert found.ms(4.0) == 21.0
    found.add(8.0, 40.0)  # slower than the larger model, by chance
    line = [found.ms(x) for x in np.linspace(0, 20, 200)]
    assert all(a <= b for a, b in itertools.pairwise(line))


@pytest.mark.parametrize("name", small.NETWORKS)
def test_removing_more_is_never_predicted_to_take_longer(name: str) -> None:
    coupling = coupling_of(name)
    layout, noise = layout_of(coupling, 2), np.random.default_rng(1)
    table = Table(lambda op, widths: made_up(op, widths) * float(noise.uniform(0.5, 2)))
    table.fill(step.operation for step in layout.steps)
    model = LatencyModel(layout, table)
    sums = [model.sum(removal(coupling, 3, share)) for share in (0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    assert sums == sorted(sums, reverse=True) and sums[0] > sums[-1]
    assert (model.channel_costs()[coupling.units] > 0).all()


def test_a_channel_costs_what_its_layers_take() -> None:
    coupling = linear_coupling(8, 40, 64, 4)
    layout = layout_of(coupling, 1, fused=True)
    table = Table(made_up)
    table.fill(step.operation for step in layout.steps)
    costs = LatencyModel(layout, table).channel_costs()
    by_group = {g.name: costs[coupling.units[g.units]] for g in coupling.groups}
    # l0 makes 40 channels (one more costs 1e-4), l1 reads them (one more costs 64e-4)
    np.testing.assert_allclose(by_group["l0"], 1e-4 * (1 + 64), rtol=1e-6)
    np.testing.assert_allclose(by_group["l1"], 1e-4 * (40 + 1), rtol=1e-6)


def test_what_is_slow_goes_first(network: Any, monkeypatch: Any) -> None:
    model, x = network
    kept = {}
    for slow in ("conv2d", "linear"):

        def measure(operation: Operation, widths: tuple[int, ...], slow: str = slow) -> float:
            return made_up(operation, widths) * (20 if slow in operation.name else 1)

        captured = fxprune.capture(model, (x,))
        coupling = fxprune.couple(captured)
        table = Table(measure)
        layout = layout_of(coupling, 1)
        table.fill(step.operation for step in layout.steps)
        latency = LatencyModel(layout, table)
        dense = latency.sum(np.zeros(len(coupling.channels), bool))
        bound = LatencyBound(latency, Calibration(), 0.5 * dense)
        scores = random_scores(coupling)
        solution = fxprune.solve(coupling, scores, Budget(latency=0.5), bound=bound)
        assert bound.fits(solution.removed)
        kept[slow] = {g.name: int((~solution.removed[coupling.units[g.units]]).sum()) for g in coupling.groups}
    assert kept["conv2d"]["0"] < kept["linear"]["0"] and kept["conv2d"]["7"] > kept["linear"]["7"]

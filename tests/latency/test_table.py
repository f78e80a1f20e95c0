"""The table of latencies: measured coarse to fine, kept in files, never falling."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fxprune.latency.layout import layout_of
from fxprune.latency.store import Store, store_of
from fxprune.latency.table import Table
from fxprune.runtimes.setting import Setting
from tests.support.latency import SETTING, made_up, product
from tests.support.pruning import coupling_of, linear_coupling


def test_between_measured_widths_the_table_is_piecewise_linear() -> None:
    operation = product()
    table = Table(made_up)
    table.fill([operation])
    curve = table.curves[operation]
    for place in itertools.product(*map(range, map(len, curve.points))):
        widths = tuple(int(axis[i]) for axis, i in zip(curve.points, place, strict=True))
        assert table.ms(operation, widths) == pytest.approx(made_up(operation, widths))
    # this world's products are linear in each width: bilinear interpolation is exact everywhere
    for widths in itertools.product((1, 7, 22, 39, 40), (3, 33, 64)):
        assert table.ms(operation, widths) == pytest.approx(made_up(operation, widths))
    assert table.ms(operation, (0, 64)) == 0.0


def test_the_table_never_falls_where_a_width_grows() -> None:
    operation, noise = product(), np.random.default_rng(0)
    table = Table(lambda op, widths: made_up(op, widths) * float(noise.uniform(0.3, 3)))
    table.fill([operation])
    full = operation.widths
    for dim in range(2):
        for other in (1, 10, full[1 - dim]):
            line = [table.ms(operation, (n, other) if dim == 0 else (other, n)) for n in range(1, full[dim] + 1)]
            assert all(a <= b + 1e-12 for a, b in itertools.pairwise(line))


def test_widths_are_sampled_as_they_will_be_kept() -> None:
    operation, asked = product(), []
    Table(lambda op, widths: asked.append(widths) or 1.0, multiple=lambda width: 8).fill([operation])
    odd = {w // 8 % 2 for widths in asked for w, full in zip(widths, operation.widths, strict=True) if w < full}
    assert all(w % 8 == 0 for widths in asked for w in widths) and odd == {1}


def test_time_is_up_coarse_to_fine() -> None:
    operations = [s.operation for s in layout_of(linear_coupling(8, 40, 64, 48, 4), 1).steps if s.operation.contracts]
    sizes = {}
    for seconds in (0.0, 1e9):
        asked: list[Any] = []
        ticks = itertools.count()
        table = Table(lambda op, w, asked=asked: asked.append(w) or 1.0, seconds=seconds, clock=lambda t=ticks: next(t))
        table.fill(operations)
        sizes[seconds] = len(asked)
        assert all(table.ms(op, op.widths) == 1.0 for op in operations)
    assert sizes[0.0] < sizes[1e9] <= sum(5 ** len(op.widths) for op in operations)


def test_what_was_measured_is_kept_in_a_file_and_not_measured_again(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("fxprune.latency.store._MEMORY", {})
    operation = product()
    first = Table(made_up, store_of(SETTING, tmp_path))
    first.fill([operation])
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text())["format"] == "fxprune latency table"

    def never(*_: Any) -> float:
        raise AssertionError("measured again")

    monkeypatch.setattr("fxprune.latency.store._MEMORY", {})
    second = Table(never, store_of(SETTING, tmp_path))
    second.fill([operation])
    assert second.ms(operation, (13, 13)) == first.ms(operation, (13, 13))
    assert store_of(SETTING).values == first.store.values  # in memory as well
    file.write_text("{")  # cut short: as if it were not there
    monkeypatch.setattr("fxprune.latency.store._MEMORY", {})
    assert store_of(SETTING, tmp_path).values == {}
    assert store_of(Setting("cpu", 2, "eager", 3), tmp_path).path != file


def test_many_widths_are_measured_along_the_diagonal() -> None:
    layout = layout_of(coupling_of("mobile"), 1)
    for step in layout.steps:
        operation, asked = step.operation, []
        Table(lambda op, w, asked=asked: asked.append(w) or 1.0).fill([operation])
        assert len(asked) <= 25


def test_measuring_leaves_the_random_state_alone() -> None:
    operation, before = product(), torch.get_rng_state()
    operation.runner((13, 13), SETTING)()
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be_measured_is_not_remembered(tmp_path: Path) -> None:
    store = Store()
    table = Table(lambda *_: None, store)
    table.fill([product()])
    assert table.ms(product(), (13, 13)) == 0.0 and not store.values

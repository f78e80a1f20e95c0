"""Latency: the table, its calibration, and budgets that are met against latencies that are made up and so known exactly."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

import fxprune
from fxprune._base.errors import BudgetError, CalibrationError, FxpruneError, PlanError
from fxprune.budget.budget import Budget
from fxprune.budget.cost import Cost
from fxprune.compiler.steps import schedule
from fxprune.coupling.selection import Selection
from fxprune.latency import search, widths
from fxprune.latency.layout import example_call, layout_of
from fxprune.latency.measure import Timing, interleaved
from fxprune.latency.operation import Operation
from fxprune.latency.predict import Calibration, LatencyBound, LatencyModel
from fxprune.latency.store import Store, store_of
from fxprune.latency.table import Table
from fxprune.latency.widths import MULTIPLES, liked_multiple
from fxprune.results.latency import Latency
from fxprune.results.record import Report
from fxprune.rewriting.slicing import slice_graph
from fxprune.runtimes.setting import Setting
from tests.models import small
from tests.support.pruning import removal

SETTING = Setting("cpu", 2, "eager", 1)


def made_up(operation: Operation, widths: tuple[int, ...]) -> float:
    """The milliseconds of an operation in a world where time is work, and each call has its price."""
    return 0.01 + 1e-4 * math.prod(widths) if operation.contracts else 0.01 + 1e-5 * sum(widths)


class Fake:
    """A stopwatch of that world: whole models take time by their products, unlike what the table adds up."""

    def __init__(self, original: nn.Module, args: tuple[Any, ...], kwargs: Any, setting: Setting = SETTING) -> None:
        self.setting, self.original, self.call = setting, original, (args, kwargs)
        self.measured: list[float] = []

    def operation(self, operation: Operation, widths: tuple[int, ...]) -> float:
        with FlopCounterMode(display=False) as counter:
            operation.runner(widths, self.setting)()
        return 0.01 + 5e-6 * counter.get_total_flops()

    def compare(self, operation: Operation, widths: Sequence[tuple[int, ...]]) -> list[float]:
        return [math.prod(math.ceil(w / 8) for w in each) * 1.0 for each in widths]

    def time(self, model: nn.Module) -> float:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(*self.call[0], **self.call[1])
        return 0.3 + 7e-6 * counter.get_total_flops() ** 1.02

    def models(self, models: Sequence[nn.Module]) -> list[float]:
        found = [self.time(model) for model in (self.original, *models)]
        self.measured += found[1:]
        return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[Fake]:
    """Lets `compile` measure with fakes; returns them."""
    made: list[Fake] = []

    def stopwatch_of(model: nn.Module, captured: Any, setting: Setting) -> Fake:
        made.append(Fake(model, *example_call(captured, setting.batch_size, "cpu"), setting))
        return made[-1]

    for module in (search, widths):
        monkeypatch.setattr(module, "stopwatch_of", stopwatch_of)
    monkeypatch.setattr(search, "store_of", lambda *_: Store())
    return made


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 32, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 96), nn.GELU(), nn.Linear(96, 4),
    )  # fmt: skip
    return model.eval(), torch.randn(4, 3, 12, 12)


# -- measuring ----------------------------------------------------------------------------------------------------


def test_calls_take_turns_and_the_median_is_told() -> None:
    now, order = [0.0], []
    cost = {"a": itertools.cycle([0.010, 0.010, 0.050]), "b": itertools.cycle([0.020])}

    def call(name: str) -> Callable[[], None]:
        def run() -> None:
            order.append(name)
            now[0] += next(cost[name])

        return run

    a, b = interleaved([call("a"), call("b")], repeats=9, seconds=0.0, clock=lambda: now[0])
    assert a.ms == pytest.approx(10.0) and b.ms == pytest.approx(20.0) and a.best == pytest.approx(10.0)
    assert len(a.samples) == len(b.samples) == 9
    assert "".join(order).endswith("abba" * 4 + "ab")  # nobody always comes first
    assert b.beside(a) == pytest.approx(2.0)


def test_quick_calls_are_repeated_within_a_sample_and_measuring_stops_when_it_stands_still() -> None:
    now, count = [0.0], [0]

    def call() -> None:
        count[0] += 1
        now[0] += 1e-5

    (found,) = interleaved([call], repeats=4, seconds=100.0, clock=lambda: now[0])
    assert found.ms == pytest.approx(0.01) and found.error == pytest.approx(0, abs=1e-9)
    assert len(found.samples) == 4 and count[0] >= 400  # 100 calls make a sample of a millisecond


def test_a_ratio_is_taken_round_by_round() -> None:
    slow, fast = Timing(0, 0, (10.0, 20.0, 40.0)), Timing(0, 0, (5.0, 10.0, 20.0))
    assert fast.beside(slow) == 0.5


# -- what a model computes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.4, 0.8])
@pytest.mark.parametrize("name", small.NETWORKS)
def test_the_layout_tells_the_shapes_of_the_sliced_model(name: str, share: float) -> None:
    coupling = small.network(name)
    removed = removal(coupling, 0, share)
    layout = layout_of(coupling, 5)
    counts = layout.counts(removed)
    shapes = _shapes(slice_graph(Selection(coupling, removed)), coupling.captured, 5)
    live = layout.live(removed)
    assert {step.node for step in live if step.operation.contracts} == {c.node for c in coupling.contractions if c.macs}
    for step in live:
        widths = [counts[n] for n in step.factors]
        (told,) = [[size.at(widths) for size in result.sizes] for result in step.operation.results]
        assert told == list(shapes[step.node.name]), step
        result = step.operation.runner(widths, SETTING)()  # and it runs alone
        assert list(result.shape) == told


def _shapes(graph: fx.GraphModule, captured: Any, batch: int) -> dict[str, Any]:
    found: dict[str, Any] = {}

    class Shapes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            found[n.name] = getattr(result := super().run_node(n), "shape", None)
            return result

    args, kwargs = example_call(captured, batch, "cpu")
    with torch.no_grad():
        Shapes(graph).run(*captured.call.flatten(args, kwargs))
    return found


def test_layers_of_one_shape_are_one_operation() -> None:
    layout = layout_of(small.linear(8, 16, 16, 16, 4), 1)
    linear = [step.operation for step in layout.steps if step.operation.contracts]
    assert len(linear) == 4 and len(set(linear)) == 3
    assert len({op.key for op in linear}) == 3


# -- the table -----------------------------------------------------------------------------------------------------


def _linear() -> Operation:
    """A product of 40 by 64 channels that may go."""
    return next(s.operation for s in layout_of(small.linear(8, 40, 64, 4), 1).steps if len(s.operation.widths) == 2)


def test_between_measured_widths_the_table_is_piecewise_linear() -> None:
    operation = _linear()
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
    operation, noise = _linear(), np.random.default_rng(0)
    table = Table(lambda op, widths: made_up(op, widths) * float(noise.uniform(0.3, 3)))
    table.fill([operation])
    full = operation.widths
    for dim in range(2):
        for other in (1, 10, full[1 - dim]):
            line = [table.ms(operation, (n, other) if dim == 0 else (other, n)) for n in range(1, full[dim] + 1)]
            assert all(a <= b + 1e-12 for a, b in itertools.pairwise(line))


def test_widths_are_sampled_as_they_will_be_kept() -> None:
    operation, asked = _linear(), []
    Table(lambda op, widths: asked.append(widths) or 1.0, quantum=8).fill([operation])
    odd = {w // 8 % 2 for widths in asked for w, full in zip(widths, operation.widths, strict=True) if w < full}
    assert all(w % 8 == 0 for widths in asked for w in widths) and odd == {1}


def test_time_is_up_coarse_to_fine() -> None:
    operations = [s.operation for s in layout_of(small.linear(8, 40, 64, 48, 4), 1).steps if s.operation.contracts]
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
    operation = _linear()
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
    layout = layout_of(small.network("mobile"), 1)
    for step in layout.steps:
        operation, asked = step.operation, []
        Table(lambda op, w, asked=asked: asked.append(w) or 1.0).fill([operation])
        assert len(asked) <= 25


# -- calibration and bound -----------------------------------------------------------------------------------------


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
    coupling = small.network(name)
    layout, noise = layout_of(coupling, 2), np.random.default_rng(1)
    table = Table(lambda op, widths: made_up(op, widths) * float(noise.uniform(0.5, 2)))
    table.fill(step.operation for step in layout.steps)
    model = LatencyModel(layout, table)
    sums = [model.sum(removal(coupling, 3, share)) for share in (0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    assert sums == sorted(sums, reverse=True) and sums[0] > sums[-1]
    assert (model.channel_costs()[coupling.units] > 0).all()


def test_a_channel_costs_what_its_layers_take() -> None:
    coupling = small.linear(8, 40, 64, 4)
    layout = layout_of(coupling, 1, fused=True)
    table = Table(made_up)
    table.fill(step.operation for step in layout.steps)
    costs = LatencyModel(layout, table).channel_costs()
    by_group = {g.name: costs[coupling.units[g.units]] for g in coupling.groups}
    # l0 makes 40 channels (one more costs 1e-4), l1 reads them (one more costs 64e-4)
    np.testing.assert_allclose(by_group["l0"], 1e-4 * (1 + 64), rtol=1e-6)
    np.testing.assert_allclose(by_group["l1"], 1e-4 * (40 + 1), rtol=1e-6)


# -- budgets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.9, 0.6, 0.35])
def test_a_share_of_the_latency_is_met(network: Any, clock: list[Fake], share: float) -> None:
    model, x = network
    pruned = fxprune.compile(model, [x], Budget(latency=share, batch_size=2, threads=1), progress=False)
    found = fxprune.report(pruned).latency
    (fake,) = clock
    assert found.dense_ms == pytest.approx(fake.time(model)) and found.measured_ms == pytest.approx(fake.time(pruned))
    assert found.limit_ms == pytest.approx(share * found.dense_ms)
    assert found.met and found.measured_ms >= 0.85 * found.limit_ms
    assert abs(found.predicted_ms / found.measured_ms - 1) < 0.15
    assert (found.backend, found.batch_size, found.device, found.threads) == ("eager", 2, "cpu", 1)
    assert "met; eager, batch 2, cpu, 1 thread" in str(fxprune.report(pruned))
    assert fxprune.report(pruned).verified and fxprune.report(pruned).plan.budget == {"latency": share}


def test_the_histogram_shows_what_units_were_ranked_by(network: Any, clock: list[Fake]) -> None:
    model, x = network
    pruned = fxprune.compile(model, [x], Budget(latency=0.5, batch_size=2), method="l1", progress=False)
    scores = fxprune.report(pruned).scores
    assert scores.unit == "score per millisecond" and scores.cut is not None
    assert sum(scores.removed) > 10 and scores.astray == (0, 0)


def test_milliseconds_and_other_bounds_hold_together(network: Any, clock: list[Fake]) -> None:
    model, x = network
    budget = Budget(params=0.5, latency_ms=2.0, batch_size=2)
    pruned = fxprune.compile(model, [x], budget, method="l1", progress=False)
    found = fxprune.report(pruned)
    assert found.latency.limit_ms == 2.0 and found.latency.met
    assert found.params[1] <= 0.5 * found.params[0]
    assert found.plan.budget == {"params": 0.5, "latency_ms": 2.0}
    loose = fxprune.compile(model, [x], Budget(params=0.5, latency=1.0), method="l1", progress=False)
    assert fxprune.report(loose).params[1] <= 0.5 * found.params[0]


def test_a_latency_that_cannot_be_reached_says_what_can(network: Any, clock: list[Fake]) -> None:
    model, x = network
    with pytest.raises(
        BudgetError, match=r"a latency of 0\.1 ms .* cannot be reached: the smallest is predicted to take 0\.3"
    ):
        fxprune.compile(model, [x], Budget(latency_ms=0.1), progress=False)


def test_what_the_original_meets_costs_nothing(network: Any, clock: list[Fake]) -> None:
    model, x = network
    found = fxprune.report(fxprune.compile(model, [x], Budget(latency=1.0), progress=False))
    assert found.units_removed == 0 and found.params[0] == found.params[1] and found.latency.met


def test_a_limit_just_above_the_smallest_model_is_met(network: Any, clock: list[Fake]) -> None:
    """The solver aims below the limit, but refuses only what lies beyond it."""
    model, x = network
    smallest = fxprune.compile(model, [x], ratios=1.0, method="l1", recover=None, progress=False)
    least = Fake(model, (x[:1],), {}).time(smallest)
    pruned = fxprune.compile(model, [x], Budget(latency_ms=1.005 * least), method="l1", progress=False)
    assert fxprune.report(pruned).latency.met


def test_what_was_measured_is_not_lost_where_the_prediction_comes_to_refuse(
    network: Any, clock: list[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = network
    smallest = fxprune.compile(model, [x], ratios=1.0, method="l1", recover=None, progress=False)
    least = Fake(model, (x[:1],), {}).time(smallest)
    plain = Fake.models

    def slower_from_now_on(self: Fake, models: Sequence[nn.Module]) -> list[float]:
        late = len(self.measured) >= 2  # the two ends of the way are measured
        dense, *rest = plain(self, models)
        return [dense, *[ms * (1.3 if late else 1.0) for ms in rest]]

    monkeypatch.setattr(Fake, "models", slower_from_now_on)
    pruned = fxprune.compile(model, [x], Budget(latency_ms=1.02 * least), method="l1", progress=False)
    found = fxprune.report(pruned).latency
    assert not found.met and found.measured_ms > found.limit_ms


def test_measuring_leaves_the_random_state_alone() -> None:
    operation, before = _linear(), torch.get_rng_state()
    operation.runner((13, 13), SETTING)()
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be_measured_is_not_remembered(tmp_path: Path) -> None:
    store = Store()
    table = Table(lambda *_: None, store)
    table.fill([_linear()])
    assert table.ms(_linear(), (13, 13)) == 0.0 and not store.values


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
        scores = small.random_scores(coupling)
        solution = fxprune.solve(coupling, scores, Budget(latency=0.5), bound=bound)
        assert bound.fits(solution.removed)
        kept[slow] = {g.name: int((~solution.removed[coupling.units[g.units]]).sum()) for g in coupling.groups}
    assert kept["conv2d"]["0"] < kept["linear"]["0"] and kept["conv2d"]["7"] > kept["linear"]["7"]


def test_steps_approach_a_latency(network: Any, clock: list[Fake]) -> None:
    model, x = network
    pruned = fxprune.compile(model, [x], Budget(latency=0.5, batch_size=2), steps=2, progress=False)
    found = fxprune.report(pruned).latency
    assert found.met and found.dense_ms == pytest.approx(clock[0].time(model))
    assert found.limit_ms == pytest.approx(0.5 * found.dense_ms)
    before = Cost(1000, 1000, 4000)
    half = schedule(Budget(latency=0.25), before, 0.5, dense_ms=8.0)
    assert half.latency is None and half.latency_ms == pytest.approx(4.0)
    assert schedule(Budget(params=0.5, latency_ms=2.0), before, 1.0, dense_ms=8.0) == Budget(params=500, latency_ms=2.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latency": 1.5}, r"latency must lie in \(0, 1\]; milliseconds are latency_ms, got 1.5"),
        ({"latency": 0.0}, "latency must lie"),
        ({"latency_ms": -1}, "latency_ms must lie above 0, got -1"),
        ({"latency_ms": math.nan}, "latency_ms must lie"),
        ({"latency_ms": True}, "latency_ms must be a number, got True"),
        ({"latency": "half"}, "latency must be a number, got 'half'"),
        ({"latency": 0.5, "latency_ms": 3.0}, "either latency .* or latency_ms"),
        (
            {"latency": 0.5, "backend": "tensorrt"},
            "backend: expected one of eager, compiled, onnxruntime, torch.export, aotinductor.*, got 'tensorrt'",
        ),
        ({"latency": 0.5, "batch_size": 0}, "batch_size: expected an int of at least 1, got 0"),
        ({"latency": 0.5, "threads": 1.5}, "threads: expected an int of at least 1, got 1.5"),
        ({"latency": 0.5, "device": "gpu9"}, "device: expected one such as 'cpu' or 'cuda:0', got 'gpu9'"),
        ({"params": 0.5, "batch_size": 4}, "say how a latency is measured, but none is bounded"),
        ({}, "got neither"),
    ],
)
def test_malformed_budgets(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        Budget(**arguments)


def test_a_latency_is_not_met_blindly(network: Any) -> None:
    coupling = small.network("residual")
    with pytest.raises(BudgetError, match=r"fxprune\.compile does, solve alone cannot"):
        fxprune.solve(coupling, small.random_scores(coupling), Budget(latency=0.5))
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    with pytest.raises(BudgetError, match="meta device"):
        fxprune.compile(
            empty, [torch.randn(2, 4)], Budget(latency=0.5), method="random", recover=None, verify=False, progress=False
        )
    with pytest.raises(BudgetError, match="device: expected one that is here, got 'cuda:99'"):
        Setting.of("cuda:99")
    if not torch.cuda.is_available():
        with pytest.raises(BudgetError, match="device: expected one that is here, got 'cuda'"):
            fxprune.compile(network[0], [network[1]], Budget(latency=0.5, device="cuda"), progress=False)


def test_a_batch_that_is_fixed_is_refused_at_another_size(network: Any) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).reshape(3, 8).relu())

    with pytest.raises(BudgetError, match=r"takes batches of 3 only .* got 1"):
        fxprune.compile(Fixed().eval(), [torch.randn(3, 4)], Budget(latency=0.5), progress=False)


# -- widths ----------------------------------------------------------------------------------------------------------


def test_round_to_auto_finds_the_multiple_that_the_hardware_works_in(network: Any, clock: list[Fake]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 96), nn.ReLU(), nn.Linear(96, 128), nn.ReLU(), nn.Linear(128, 3)).eval()
    pruned = fxprune.compile(model, [torch.randn(4, 8)], 0.5, round_to="auto", progress=False)
    found = fxprune.report(pruned)
    assert all(row.after % 8 == 0 for row in found.groups) and found.units_removed
    (note,) = [note for note in found.notes if note.startswith("round_to=")]
    assert note.startswith("round_to=8: multiples of 1 take ") and "multiples of 8 take 0 % longer" in note
    twice = fxprune.compile(model, [torch.randn(4, 8)], 0.5, round_to="auto", steps=2, progress=False)
    assert note in fxprune.report(twice).notes
    small_one = fxprune.compile(*[network[0], [network[1]]], 0.5, round_to="auto", progress=False)
    assert any("round_to=1: " in n for n in fxprune.report(small_one).notes) or any(
        "round_to=8" in n for n in fxprune.report(small_one).notes
    )


@pytest.mark.parametrize("liked", MULTIPLES)
def test_each_multiple_is_found(liked: int) -> None:
    layout = layout_of(small.linear(8, 128, 128, 4), 1, fused=True)

    def compare(operation: Operation, widths: Sequence[tuple[int, ...]]) -> list[float]:
        return [math.prod(each) * (1.0 if all(w % liked == 0 for w in each) else 1.3) for each in widths]

    found, why = liked_multiple(layout, compare)
    assert found == liked and why.startswith(f"round_to={liked}: ")
    assert liked_multiple(layout, lambda *_: [])[0] == 1


def test_round_to_takes_a_number_or_auto(network: Any) -> None:
    with pytest.raises(ValueError, match="round_to must be an int of at least 1, got 'best'"):
        fxprune.compile(network[0], [network[1]], 0.5, round_to="best", progress=False)


# -- the record ------------------------------------------------------------------------------------------------------


def _latency(**changes: Any) -> Latency:
    values: dict[str, Any] = {
        "dense_ms": 10.0, "measured_ms": 6.0, "predicted_ms": 5.5, "limit_ms": 5.0, "backend": "eager",
        "batch_size": 1, "device": "cpu", "threads": 2,
    }  # fmt: skip
    return Latency(**values | changes)


def test_the_record_says_by_how_much_a_limit_is_missed() -> None:
    assert not _latency().met and _latency(limit_ms=6.0).met
    assert str(_latency()) == (
        "latency: 10 ms -> 6 ms (60.0%), predicted 5.5; limit 5 ms: over by 1 ms (20.0%); eager, batch 1, cpu, 2 threads"
    )


def test_the_record_is_kept_with_the_report() -> None:
    report = Report(params=(2, 1), macs=(2, 1), bytes=(8, 4), method="l1", latency=_latency())
    data = json.loads(json.dumps(report.to_dict()))
    assert Report.from_dict(data) == report
    assert Report.from_dict({**data, "latency": None}).latency is None
    old = {k: v for k, v in data.items() if k not in ("latency", "layers", "scores")} | {"schema": 1}
    assert Report.from_dict(old).latency is None
    for damage in ({"threads": "two"}, {"dense_ms": 0}, {"more": 1}):
        with pytest.raises(PlanError, match="latency"):
            Report.from_dict({**data, "latency": {**data["latency"], **damage}})


# -- real measuring ----------------------------------------------------------------------------------------------------


def test_a_real_latency_is_measured(network: Any, tmp_path: Path) -> None:
    model, x = network
    threads = torch.get_num_threads()
    budget = Budget(params=0.5, latency_ms=1e6, batch_size=3, threads=1)
    pruned = fxprune.compile(model, [x], budget, cache_dir=tmp_path, progress=False)
    found = fxprune.report(pruned).latency
    assert min(found.dense_ms, found.measured_ms, found.predicted_ms) > 0 and found.batch_size == 3
    assert torch.get_num_threads() == threads and [p.suffix for p in tmp_path.glob("latency-*")] == [".json"]
    fxprune.save(pruned, tmp_path / "saved")
    assert fxprune.report(fxprune.load(tmp_path / "saved", model)).latency == found


def test_bench_measures_models_in_turns(network: Any) -> None:
    model, x = network
    pruned = fxprune.compile(model, [x], Budget(macs=0.3), progress=False)
    model.train()
    found = fxprune.bench((model, pruned), x, batch_sizes=(1, 3), repeats=2, seconds=0.01)
    assert model.training
    model.eval()
    assert [(r.model, r.batch_size) for r in found.rows] == [("dense", 1), ("pruned", 1), ("dense", 3), ("pruned", 3)]
    assert all(row.ms > 0 for row in found.rows) and found.rows[0].ratio == 1.0
    weights = [sum(t.nbytes for t in (*m.parameters(), *m.buffers())) for m in (model, pruned)]
    assert [row.parameter_bytes for row in found.rows[:2]] == weights
    assert found.rows[3].peak_bytes < found.rows[2].peak_bytes  # narrower layers need less
    assert found.rows[0].peak_bytes >= 4 * 24 * 10 * 10  # the first layer's output, at least
    assert json.loads(json.dumps(found.to_dict()))["rows"][1]["model"] == "pruned"
    assert str(found).splitlines()[0] == f"cpu, {torch.get_num_threads()} thread" + "s" * (torch.get_num_threads() > 1)
    named = fxprune.bench({"a": pruned}, repeats=1, seconds=0)  # a model of fxprune's own needs no example
    assert named.rows[0].model == "a"


def test_a_model_that_fails_costs_only_its_own_rows(network: Any) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(4, 3 * 12 * 12)[:, :2]

    models = {"dense": Fixed(), "pruned": network[0]}
    found = fxprune.bench(models, network[1], batch_sizes=(4, 3), repeats=1, seconds=0.0)
    assert [(row.model, row.batch_size) for row in found.rows] == [("dense", 4), ("pruned", 4), ("pruned", 3)]
    assert found.rows[1].ratio is not None and found.rows[2].ratio is None
    assert found.failed[0].startswith("dense: eager, batch 3, cpu") and "RuntimeError" in found.failed[0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"backends": ("tvm",)}, BudgetError, "backend: expected one of"),
        ({"batch_sizes": (0,)}, BudgetError, "batch_size: expected"),
        ({"batch_sizes": ()}, FxpruneError, "expected a batch size"),
        ({"repeats": 0}, FxpruneError, "repeats: expected an int of at least 1, got 0"),
        ({"models": []}, FxpruneError, r"expected models by name, or \(dense, pruned\), got none"),
        ({"models": ["resnet"]}, FxpruneError, "got str"),
        ({"example": None}, CalibrationError, "expected a batch, got None"),
    ],
)
def test_bench_says_what_is_wrong(network: Any, arguments: Any, error: Any, message: str) -> None:
    model, x = network
    with pytest.raises(error, match=message):
        fxprune.bench(**{"models": [model], "example": x} | arguments)


def test_an_onnxruntime_session_runs_the_pruned_model(network: Any) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, x = network
    found = fxprune.bench([model], x, backends=("onnxruntime",), repeats=1, seconds=0)
    assert found.rows[0].ms > 0 and found.rows[0].peak_bytes is None and not found.failed

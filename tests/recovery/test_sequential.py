"""Sequential compensation: what else has drifted by the time that a layer is reached."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.capturing.captured import capture
from fxprune.recovery.sequential import find_drift
from tests.models.fn import Fn
from tests.support.pruning import removal
from tests.support.weights import randomise


def test_drift_is_the_other_operand_of_the_addition_behind_a_layer() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(m.conv(x))
        return (x + y).relu() + m.other(x) * 2

    parts = {"conv": nn.Conv2d(3, 3, 1, bias=False), "norm": nn.BatchNorm2d(3), "other": nn.Conv2d(3, 3, 1)}
    captured = capture(Fn(forward, **parts).eval(), (torch.randn(2, 3, 4, 4),))
    nodes = {n.args[1].target: n for n in captured.module.graph.nodes if n.target is torch.ops.aten.conv2d.default}
    drift = find_drift(nodes["conv.weight"])
    assert drift is not None and drift.skip.op == "placeholder"
    assert drift.norm is not None and drift.norm.target is torch.ops.aten.batch_norm.default
    assert find_drift(nodes["other.weight"]) is None  # it is scaled before it is added


def test_a_layer_that_loses_nothing_is_fitted_to_what_has_drifted() -> None:
    """Against least squares by numpy; before the first layer that loses columns, and behind the last, nothing changes."""
    torch.manual_seed(0)
    sizes = (6, 12, 24, 8, 24, 5, 4)
    layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.Tanh())]
    model = nn.Sequential(*layers[:-1]).double().eval()  # 0: 12, 2: 24, 4: 8, 6: 24, 8: 5, 10: 4
    data = [(torch.randn(4096, 6, dtype=torch.float64),) for _ in range(4)]
    coupling = fxprune.couple(fxprune.capture(model, data[0]))
    removed = np.zeros(len(coupling.channels), bool)
    for name in ("2.weight", "6.weight"):
        (made,) = [axis for axis in coupling.axes if axis.tensor == name and axis.dim == 0]
        removed[made.labels[:8].ravel()] = True
    for limit in (1 << 30, 1 << 22):
        changed = fxprune.recover(coupling, removed, data, "sequential", ridge=1e-9, memory_limit=limit).tensors
        assert {name.partition(".")[0] for name in changed} == {"4", "6", "8"}
        x = torch.cat([batch for (batch,) in data])
        with torch.no_grad():
            wanted = model[:7](x)[:, 8:]  # what stays of the layer that reads what has drifted, and loses no column
            new = {**model.state_dict(), **changed}
            hidden = model[:4](x)[:, 8:] @ new["4.weight"][:, 8:].T + new["4.bias"]
            read = np.c_[hidden.tanh().numpy(), np.ones(len(x))]
        best = np.linalg.lstsq(read, wanted.numpy())[0]
        got = np.c_[new["6.weight"][8:].numpy(), new["6.bias"][8:, None].numpy()]
        np.testing.assert_allclose(got, best.T, atol=1e-4)


class Beside(nn.Module):
    """A layer without a bias, and what its output meets."""

    def __init__(self, meet: Callable[[Any, Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.m, self.d = nn.Linear(10, 24), nn.Linear(24, 16), nn.Linear(16, 30)
        self.w, self.c = nn.Linear(30, 16, bias=False), nn.Linear(16, 4)
        self.norm, self.places = nn.BatchNorm1d(16), nn.BatchNorm1d(8)
        self.meet = meet

    def forward(self, x: Tensor) -> Tensor:
        h = self.m(self.a(x).relu())
        y: Tensor = self.c(self.meet(self, x, h, self.w(self.d(h).relu())))
        return y


MEETINGS: dict[str, Callable[[Any, Tensor, Tensor, Tensor], Tensor]] = {
    "a norm over flattened tokens": lambda m, x, h, y: h + m.norm(y.reshape(-1, 16)).reshape(h.shape),
    "a norm over places": lambda m, x, h, y: m.places(y).relu(),
    "flags": lambda m, x, h, y: (y + (x[..., :1] > 0)).relu(),
    "minus infinity": lambda m, x, h, y: (y + torch.zeros_like(h).masked_fill(x[..., :1] > 1, -torch.inf)).sigmoid(),
    "a computed variance": lambda m, x, h, y: (
        h
        + nn.functional.batch_norm(y.flatten(0, 1), m.norm.running_mean, m.norm.running_var * 2, m.norm.weight).reshape(
            h.shape
        )
    ),
}


@pytest.mark.parametrize("meeting", MEETINGS)
def test_what_a_layer_s_output_meets(meeting: str) -> None:
    torch.manual_seed(0)
    model = randomise(Beside(MEETINGS[meeting])).eval()
    data, error = [torch.randn(16, 8, 10) for _ in range(4)], {}
    for recover in (None, "mean_shift", "covariance", "sequential"):
        small = fxprune.compile(model, data, 0.7, method="l2", recover=recover, progress=False)
        assert small.report.verified
        error[recover] = float(sum((small(x) - model(x)).square().mean() for x in data).detach())
    assert error["sequential"] < 1.05 * error["covariance"] and error["covariance"] < error[None]


def test_no_shift_of_outputs_goes_to_the_mean_of_places() -> None:
    """There may be as many places as outputs, and then nothing but the result says that it is wrong."""
    torch.manual_seed(0)
    norm, layers = nn.BatchNorm1d(16), (nn.Linear(10, 24), nn.Linear(24, 16, bias=False), nn.Linear(16, 4))
    model = Fn(lambda m, x: m.c(m.norm(m.b(m.a(x).relu())).relu()), norm=norm, **dict(zip("abc", layers, strict=True)))
    data = [torch.randn(32, 16, 10) for _ in range(4)]
    options: dict[str, Any] = {"ratios": {"a": 0.5, "default": 0.0}, "method": "l2", "progress": False}
    small = fxprune.compile(model.eval(), data, recover="covariance", **options)
    assert torch.equal(small.norm.running_mean, norm.running_mean) and small.report.verified
    assert small.report.skipped == ("b.weight: no bias or batch norm takes its shift",)


class Bottleneck(nn.Module):
    """Two layers beside a projection, as in ResNet-50: each of the last two is the other's skip."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(channels, 6, 1), nn.Conv2d(6, out, 1, bias=False)
        self.norm = nn.BatchNorm2d(out)
        self.down = nn.Sequential(nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.b(self.a(x).relu())) + self.down(x)
        return y.relu()


@pytest.mark.parametrize("limit", [1 << 30, 1 << 16])
def test_layers_that_are_each_other_s_skip(limit: int) -> None:
    torch.manual_seed(0)
    blocks = [Bottleneck(8, 8), Bottleneck(8, 12), Bottleneck(12, 12)]
    model = randomise(nn.Sequential(nn.Conv2d(3, 8, 1), *blocks, nn.Conv2d(12, 4, 1)))
    data = [(torch.randn(4, 3, 5, 5),) for _ in range(3)]
    coupling = fxprune.couple(fxprune.capture(model, data[0]))
    removed = removal(coupling, 0, 0.4)
    tensors = {
        method: fxprune.recover(coupling, removed, data, method, memory_limit=limit).tensors
        for method in ("mean_shift", "sequential")
    }
    dense = [model(*batch) for batch in data]
    error = {}
    for method, changed in tensors.items():
        pruned = fxprune.rewrite(coupling, removed, changed)
        error[method] = sum(
            float((pruned(*x)[0] - y).square().sum().detach()) for x, y in zip(data, dense, strict=True)
        )
    assert error["sequential"] < error["mean_shift"]


@pytest.mark.parametrize("size", [1, 3, 11])
def test_it_is_no_worse_than_one_shot_on_other_data(size: int) -> None:
    """Ridges are judged by batches, or parts of few, that the regression has not seen: however small they are."""
    worse = []
    for seed in range(4):
        torch.manual_seed(seed)
        sizes = (8, 32, 32, 8)
        layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
        model, x, fresh = nn.Sequential(*layers[:-1]).eval(), torch.randn(33, 8), torch.randn(1000, 8)
        options: dict[str, Any] = {"ratios": 0.4, "method": "l1", "progress": False}
        error = {}
        for recover in ("covariance", "sequential"):
            small = fxprune.compile(model, list(x.split(size)), recover=recover, **options)
            error[recover] = float((small(fresh) - model(fresh)).square().mean().detach())
        worse.append(error["sequential"] / error["covariance"])
    assert sum(worse) / len(worse) < 1.05


def test_layers_that_stay_as_covariance_left_them_are_named() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    options: dict[str, Any] = {"ratios": 0.4, "method": "l1", "recover": "sequential", "holdout": 0, "progress": False}
    one, few, many = (fxprune.compile(model, list(torch.randn(n, 8).split(8)), **options) for n in (1, 3, 512))
    assert not one.report.skipped  # a shift makes a single sample right: nothing is left to make up for
    (line,) = few.report.skipped
    assert line.startswith("2.weight, 4.weight: as covariance left them")
    (line,) = many.report.skipped
    assert line.startswith("2.weight: as covariance left them")  # nothing before it has drifted


def test_depthwise_filters_are_fitted_to_what_has_drifted() -> None:
    """Against least squares by numpy, channel by channel: none makes up for another, and one-shot covariance has nothing for them."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(4, 12, 1), nn.ReLU(), nn.Conv2d(12, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 2, 1, groups=6))
    model = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)).double().eval()
    data = [torch.randn(64, 4, 8, 8, dtype=torch.float64) for _ in range(4)]
    coupling = fxprune.couple(fxprune.capture(model, (data[0],)))
    removed = np.zeros(len(coupling.channels), bool)
    for name, count in (("0.weight", 6), ("6.weight", 2)):
        (made,) = [axis for axis in coupling.axes if axis.tensor == name and axis.dim == 0]
        removed[made.labels[:count].ravel()] = True
    inputs = [(x,) for x in data]
    once = fxprune.recover(coupling, removed, inputs, "covariance").tensors
    changed = fxprune.recover(coupling, removed, inputs, "sequential", ridge=1e-9).tensors
    assert "4.weight" not in once and {"2.weight", "4.weight", "4.bias", "6.weight", "8.weight"} <= set(changed)
    new = {**model.state_dict(), **changed}
    with torch.no_grad():
        x = torch.cat(data)
        wanted = model[:5](x).movedim(1, -1).flatten(0, 2)
        hidden = nn.functional.conv2d(model[:2](x)[:, 6:], new["2.weight"][:, 6:], new["2.bias"]).relu()
        windows = nn.functional.pad(hidden, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2)
        for channel in range(6):
            read = np.c_[windows[:, channel].flatten(3).flatten(0, 2).numpy(), np.ones(len(wanted))]
            best = np.linalg.lstsq(read, wanted[:, channel].numpy())[0]
            got = [*new["4.weight"][channel].flatten().tolist(), float(new["4.bias"][channel])]
            error = [np.square(read @ each - wanted[:, channel].numpy()).sum() for each in (best, np.array(got))]
            assert error[1] < 1.2 * error[0]  # of a random part of the places

"""Layers on the only path that go: what the bridged model computes, and which layers the solver bridges."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import fxprune
from fxprune.bridging.bridge import bridge
from fxprune.capturing.captured import capture
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.interpreter import couple
from fxprune.coupling.selection import Selection
from fxprune.results.plan import Plan
from fxprune.twin.interpreter import Run
from tests.support.weights import fingerprint


class Chain(nn.Module):
    """Convolutions with pooling between them, as in VGG; ``head`` reads vectors or flattened maps."""

    def __init__(self, head: str = "pool", widths: tuple[Any, ...] = (6, 5, "M", 7, 7, "M", 8, 8, "M")) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for item in widths:
            if item == "M":
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(width, item, 3, padding=1), nn.BatchNorm2d(item), nn.ReLU(True)]
                width = item
        self.features, self.head = nn.Sequential(*layers), head
        self.classifier = nn.Linear(width * (4 if head == "flatten" else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = x.mean((2, 3)) if self.head == "pool" else x
        return self.classifier(x.flatten(1))


def _x(batch: int = 3, size: int = 16, seed: int = 0) -> Tensor:
    return torch.randn((batch, 3, size, size), generator=torch.Generator().manual_seed(seed))


def _coupled(model: nn.Module, x: Tensor) -> Coupling:
    torch.manual_seed(0)
    return couple(capture(model.eval(), (x,)))


def _ops(coupling: Coupling) -> list[str]:
    nodes = coupling.captured.module.graph.nodes
    names = [n.target._schema.name[6:] for n in nodes if n.op == "call_function" and hasattr(n.target, "_schema")]
    return [name for name in names if name in ("conv2d", "max_pool2d", "avg_pool2d", "linear")]


def _run(coupling: Coupling, x: Tensor) -> Tensor:
    (y,) = Run(Selection.nothing(coupling))((x,))
    return y


def test_a_layer_goes_and_the_next_reads_what_it_read() -> None:
    model, x = Chain(), _x()
    before = fingerprint(model)
    found = bridge(_coupled(model, x), ["features.7"])
    assert found is not None
    assert fingerprint(model) == before
    assert found.remade == {"features.10.weight": (7, 5, 3, 3)}
    smaller = copy.deepcopy(model)
    smaller.features[10] = nn.Conv2d(5, 7, 3, padding=1)
    smaller.features[10].weight = nn.Parameter(found.captured.module.get_parameter("features.10.weight"))
    smaller.features[10].bias = model.features[10].bias
    smaller.features = nn.Sequential(*(layer for i, layer in enumerate(smaller.features) if i not in (7, 8, 9)))
    torch.testing.assert_close(_run(found.coupling, x), smaller.eval()(x))


def test_a_stage_without_layers_loses_its_pooling() -> None:
    coupling = _coupled(Chain(), _x())
    whole = _ops(coupling)
    for groups, pools in ((["features.7"], 3), (["features.7", "features.10"], 2), (["features.0", "features.3"], 2)):
        found = bridge(coupling, groups)
        assert found is not None
        assert _ops(found.coupling).count("max_pool2d") == pools
        assert _ops(found.coupling).count("conv2d") == whole.count("conv2d") - len(groups)


def test_a_pooling_stays_where_sizes_must() -> None:
    coupling = _coupled(Chain("flatten"), _x())
    found = bridge(coupling, ["features.7", "features.10"])
    assert found is not None
    assert _ops(found.coupling).count("max_pool2d") == 3
    assert _run(found.coupling, _x(2)).shape == (2, 3)


@pytest.mark.parametrize("head", ["pool", "flatten"])
def test_the_classifier_adapts(head: str) -> None:
    coupling = _coupled(Chain(head), _x())
    last = coupling.groups[-1].name
    found = bridge(coupling, [last, coupling.groups[-2].name])
    assert found is not None
    width = {"pool": 7, "flatten": 28}[head]
    assert found.remade["classifier.weight"] == (3, width)
    assert _run(found.coupling, _x(4)).shape == (4, 3)


def test_all_layers_but_the_classifier() -> None:
    coupling = _coupled(Chain(), _x())
    found = bridge(coupling, [g.name for g in coupling.groups])
    assert found is not None
    assert _ops(found.coupling) == ["linear"]
    assert found.remade["classifier.weight"] == (3, 3)


@pytest.mark.slow
def test_a_stage_of_a_residual_network_goes_and_its_stride_stays() -> None:
    coupling = _coupled(torchvision.models.resnet18(num_classes=3), _x(size=64))
    found = bridge(coupling, ["layer3.0.conv2"])
    assert found is not None
    assert not any("layer3" in g.name for g in found.coupling.groups)
    assert found.remade == {"layer4.0.conv1.weight": (512, 128, 3, 3), "layer4.0.downsample.0.weight": (512, 128, 1, 1)}
    pools = [n for n in found.captured.module.graph.nodes if n.target is torch.ops.aten.avg_pool2d.default]
    shapes = [found.captured.info[n].example for n in pools]
    assert shapes == [(3, 128, 4, 4)]


@pytest.mark.slow
def test_what_cannot_be_bridged_is_none() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x).relu()).relu().mean((2, 3)))

    coupling = _coupled(Grouped(), _x())
    (name,) = [g.name for g in coupling.groups if g.producers == ("a",)][:1]
    assert bridge(coupling, [name]) is None


class ByPlace:
    """Units of some layers are worth less than all others."""

    name, needs, per_cost = "by_place", ("weights",), False

    def __init__(self, *least: str, **defaults: Any) -> None:
        self.least = least
        self.defaults = {"min_keep": 0, "recover": "reinit", **defaults}

    def score(self, context: fxprune.Context) -> dict[str, Tensor]:
        return {
            g.name: torch.linspace(1, 2, len(g.units)) - float(g.name in self.least) for g in context.coupling.groups
        }


@pytest.mark.slow
def test_the_solver_bridges_what_the_ranking_empties() -> None:
    model = Chain(widths=(16, 16, "M", 32, 32, "M", 32, 32, "M"))
    method, x = ByPlace("features.10", "features.14"), [_x(8)]
    pruned = fxprune.compile(model, x, 0.2, method=method, progress=False)
    report = fxprune.report(pruned)
    assert set(report.plan.bridged) == {"features.10", "features.14"}
    assert {"features.10", "features.11", "features.14", "features.15"} <= set(report.collapsed)
    assert {r.name: r.after for r in report.groups}["features.10"] == 0
    assert report.params == (sum(p.numel() for p in model.parameters()), sum(p.numel() for p in pruned.parameters()))
    assert report.params[1] <= 0.2 * report.params[0]
    assert report.verified is True
    assert pruned.train()(_x(5)).shape == (5, 3)


def test_nothing_is_bridged_unless_weights_are_drawn_anew() -> None:
    method = ByPlace("features.10", "features.14", recover=None)
    model = Chain(widths=(16, 16, "M", 32, 32, "M", 32, 32, "M"))
    report = fxprune.report(fxprune.compile(model, [_x(8)], 0.2, method=method, progress=False))
    assert report.plan.bridged == ()
    assert {r.name: r.after for r in report.groups}["features.10"] == 1


@pytest.mark.slow
def test_a_budget_only_bridges_can_reach() -> None:
    model, x = Chain(widths=(16, 16, "M", 16, 16, "M")), [_x(8)]
    with pytest.raises(fxprune.BudgetError) as error:
        fxprune.compile(model, x, 0.001, method=ByPlace(recover=None), progress=False)
    assert "smallest" in str(error.value)
    pruned = fxprune.compile(model, x, 0.006, method=ByPlace(), progress=False)
    assert fxprune.report(pruned).plan.bridged
    assert sum(p.numel() for p in pruned.parameters()) <= 0.006 * sum(p.numel() for p in model.parameters())


@pytest.mark.slow
def test_plan_save_and_load(tmp_path: Any) -> None:
    model = Chain(widths=(16, 16, "M", 32, 32, "M", 32, 32, "M"))
    pruned = fxprune.compile(model, [_x(8)], 0.2, method=ByPlace("features.10"), progress=False)
    plan = fxprune.report(pruned).plan
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.remade
    again = fxprune.apply(model, plan)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in pruned.state_dict().items()}
    fxprune.save(pruned, tmp_path / "out")
    torch.testing.assert_close(fxprune.load(tmp_path / "out", model)(_x()), pruned(_x()))
    buffer = io.BytesIO()
    torch.save(pruned, buffer)
    buffer.seek(0)
    torch.testing.assert_close(torch.load(buffer, weights_only=False)(_x()), pruned(_x()))
    torch.export.export(pruned, (_x(),))

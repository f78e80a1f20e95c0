"""Models that are captured in parts come back in their own class, each part in its place."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxprune
from tests.models.parts import Detector, Two, layers
from tests.support.marks import sampled
from tests.support.weights import fingerprint, randomise

PARTS = ("body", "deeper.0", "head")


def images(size: int = 32, count: int = 2, seed: int = 0) -> list[Tensor]:
    return list(torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed)))


class Trained(Detector):
    """Has a loss of its own in training, of numbers outside the parts, and a classifier that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.last = nn.Parameter(torch.ones(())), nn.Linear(4, 2)

    def forward(self, images: list[Tensor], targets: Tensor | None = None) -> Any:
        found = super().forward(images)
        boxes = self.last(self.scale * torch.cat([one["boxes"] for one in found]))
        return found, boxes if targets is None else (boxes - targets).square().mean()


def made(kind: type[nn.Module] = Trained) -> nn.Module:
    return randomise(kind(), 0, (images(),)).eval()


def compiled(model: nn.Module, form: str = "module", **options: Any) -> Any:
    data = [(images(seed=seed),) for seed in range(2)]
    return fxprune.compile(model, data, 0.5, forward_args=tuple, progress=False, form=form, **options)


def alike(first: Any, second: Any) -> bool:
    pairs = zip(pytree.tree_leaves(first), pytree.tree_leaves(second), strict=True)
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return made()


@pytest.fixture(scope="module")
def graph(model: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxprune.GradientWarning)
        return compiled(model, "graph")


@pytest.fixture(scope="module")
def home(model: nn.Module) -> Any:
    before = fingerprint(model)
    found = compiled(model)
    assert fingerprint(model) == before
    return found


def test_every_part_is_of_its_class_and_the_whole_is_verified(model: nn.Module, home: Any) -> None:
    assert type(home) is Trained and not home.training
    assert not any(isinstance(module, torch.fx.GraphModule) for module in home.modules())
    assert home.report.form == "module" and home.report.islands == PARTS and home.report.verified
    assert list(home.state_dict()) == list(model.state_dict())
    first, norm = home.body[0][0], home.body[0][1]
    assert first.out_channels == norm.num_features == len(first.weight) < 16
    parts = {name: home.get_submodule(name) for name in PARTS}
    assert sum(p.numel() for part in parts.values() for p in part.parameters()) == home.report.params[1]
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    assert not any(id(tensor) in own for tensor in (*home.parameters(), *home.buffers()))


def test_it_is_the_graph_at_any_size(graph: Any, home: Any) -> None:
    """Ties are few here: what the class can say is what the graph has."""
    for size, count in ((32, 2), (48, 1), (40, 3)):
        assert alike(home(images(size, count)), graph(images(size, count)))


def test_it_trains_with_what_lies_outside_the_parts(home: Any) -> None:
    tuned = copy.deepcopy(home).train()
    optimizer = torch.optim.SGD(tuned.parameters(), 0.05)
    found = []
    for _ in range(8):
        loss = tuned(images(), torch.zeros(1, 2))[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert found[-1] < 0.8 * found[0]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (tuned.scale, tuned.body[0][0].weight))


def test_a_graph_that_was_trained_goes_home_with_all_that_it_has_learnt(model: nn.Module, graph: Any) -> None:
    tuned = copy.deepcopy(graph)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.mul_(1.01)
    home = fxprune.restore(tuned, model)
    assert type(home) is Trained and home.report.form == "module"
    assert alike(home(images(40, 3)), tuned(images(40, 3)))
    assert torch.equal(home.scale, tuned.scale) and torch.equal(home.last.weight, tuned.last.weight)


def test_it_is_saved_loaded_copied_and_pickled(model: nn.Module, home: Any, tmp_path: Path) -> None:
    fxprune.save(home, tmp_path / "home")
    for back in (fxprune.load(tmp_path / "home", model), pickle.loads(pickle.dumps(home)), copy.deepcopy(home)):
        assert type(back) is Trained and back.report.form == "module"
        pairs = zip(pytree.tree_leaves(back(images())), pytree.tree_leaves(home(images())), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", sampled([{"steps": 2}, {"recover": "covariance"}, {"recover": "sequential"}], 3), ids=str
)
def test_options_are_those_of_any_model(model: nn.Module, options: dict[str, Any]) -> None:
    home = compiled(model, **options)
    assert type(home) is Trained and home.report.verified and home.report.params[1] <= home.report.params[0] // 2
    home(images(48, 1))


def test_rounding_decides_nothing(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a whole takes another way by the last bits, it is compared in float64, its parts in their classes too."""
    from fxprune.compiler import reassembly

    lifted: list[type] = []
    whole = reassembly.lifted
    monkeypatch.setattr(reassembly, "settled", lambda check: check(torch.float64))
    monkeypatch.setattr(reassembly, "lifted", lambda part, dtype: lifted.append(type(part)) or whole(part, dtype))
    home = compiled(model)
    assert lifted and not any(issubclass(kind, torch.fx.GraphModule) for kind in lifted)
    assert home.body[0][0].weight.dtype == torch.float32


@pytest.mark.parametrize("asked", [{"also": [nn.Module.__call__]}, {"uniform": True}], ids=["also", "uniform"])
def test_what_is_asked_of_the_whole_is_refused(model: nn.Module, asked: dict[str, Any]) -> None:
    with pytest.raises(fxprune.RestoreError, match=f"{next(iter(asked))}= is about the whole model"):
        compiled(model, **asked)


def test_a_model_that_is_home_is_no_graph(model: nn.Module, home: Any) -> None:
    with pytest.raises(fxprune.PlanError, match="expected a graph"):
        fxprune.restore(home, model)


class Bound(nn.Module):
    """A part whose copies compute with the original's layer: a function that it holds has it in it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(12, 24, 1), nn.Conv2d(24, 5, 1)
        first = self.first
        self.started = lambda x: first(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.started(x).relu())


def test_what_no_class_can_say_is_refused_with_the_graph_at_hand() -> None:
    model = Detector()
    model.head = Bound()
    model = randomise(model, 0, (images(),)).eval()
    with pytest.raises(fxprune.RestoreError, match="form='graph'") as caught:
        compiled(model)
    held = caught.value.pruned
    assert isinstance(held, Detector) and isinstance(held.body, torch.fx.GraphModule)
    assert len(held(images(40, 3))) == 3


def small(model: nn.Module, form: str = "module", data: Any = None, budget: float = 0.6, **options: Any) -> Any:
    data = [torch.randn(16, 8, generator=torch.Generator().manual_seed(0))] if data is None else data
    options = {"method": "l1", "recover": None, "dynamic_shapes": {}, **options}
    return fxprune.compile(model.eval(), data, budget, progress=False, form=form, **options)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


both = pytest.mark.parametrize("form", ["graph", "module"])


class Penalised(Two):
    """Has a parameter of a part by another name, and in a plain list."""

    def more(self) -> None:
        self.penalised, self.watched = self.a[2].weight, [self.a[4].weight]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        return y + self.penalised.square().sum() + self.watched[0].square().sum()


@both
def test_what_the_rest_of_the_model_reaches_as_well_stays_and_stays_shared(form: str, tmp_path: Path) -> None:
    model, x = Penalised(), torch.randn(5, 8)
    pruned = small(model, form)
    whole = pruned.get_parameter("a.2.weight")
    assert pruned.penalised is whole and pruned.watched[0] is pruned.get_parameter("a.4.weight")
    assert whole.shape == (24, 24) and pruned.report.verified
    assert count(pruned) == pruned.report.params[1] <= 0.6 * count(model)
    assert any("reaches it outside its part 'a'" in row.reason for row in pruned.report.frozen)
    fxprune.save(pruned, tmp_path / "out")
    again = [fxprune.load(tmp_path / "out", Penalised()), fxprune.apply(model, pruned.plan)]
    again += [fxprune.restore(pruned, model)] if form == "graph" else []
    for one in again:
        assert one.penalised is one.get_parameter("a.2.weight") and alike(one.eval()(x), pruned(x))


WAYS: list[dict[str, Any]] = [{"steps": 2}, {"units": ("channel", "block")}, {"recover": "covariance"}]


@pytest.mark.parametrize(
    ("form", "options"), sampled([(form, way) for form in ("graph", "module") for way in WAYS], 4), ids=str
)
def test_what_is_shared_stays_whatever_the_way(form: str, options: dict[str, Any]) -> None:
    pruned = small(Penalised(), form, **options)
    assert pruned.penalised is pruned.get_parameter("a.2.weight") and pruned.penalised.shape == (24, 24)


class Branches(Two):
    """Has a layer of a part in a branch that other values take."""

    def more(self) -> None:
        self.c = nn.Sequential(self.a[0], nn.ReLU(), nn.Linear(24, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) if float(x.sum()) > 0 else self.c(x))


@both
def test_a_layer_that_another_branch_has_too_stays(form: str) -> None:
    x = torch.ones(16, 8)
    pruned = small(Branches(), form, [x])
    assert pruned(-x).shape == pruned(x).shape == (16, 4)
    assert pruned.c[0].weight is pruned.get_parameter("a.0.weight")
    if form == "graph":
        assert fxprune.restore(pruned, Branches())(-x).shape == (16, 4)


class Tied(Two):
    """Has one weight in two parts."""

    def more(self) -> None:
        self.b = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 4))
        self.b[0].weight = self.a[0].weight


@both
def test_a_weight_of_two_parts_stays_one(form: str) -> None:
    pruned = small(Tied(), form, budget=0.8)
    assert pruned.get_parameter("a.0.weight") is pruned.get_parameter("b.0.weight")
    assert count(pruned) == pruned.report.params[1] < count(Tied()) and pruned.report.verified


class Aliases(Two):
    """Calls its parts by other names, one of which comes first, one from a plain list."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.parts = nn.ModuleList([layers(8, 24, 8)])
        self.a, self.b = self.parts[0], layers(8, 32, 4)
        self.order, self.within = [self.b], nn.ModuleDict({"b": self.b})

    def second(self, y: Tensor) -> Tensor:
        found: Tensor = self.order[0](y)
        return found


@both
def test_parts_with_several_names_are_pruned_under_all_of_them(form: str) -> None:
    model, x = Aliases(), torch.randn(16, 8)
    pruned = small(model, form)
    assert pruned.report.islands == ("parts.0", "b") and pruned.report.verified
    assert pruned.order[0] is pruned.b is pruned.within["b"] and pruned.parts[0] is pruned.a
    assert count(pruned) == pruned.report.params[1] <= 0.6 * count(model)
    assert not torch.equal(pruned(x), model(x))


class Functional(Two):
    """Calls a part by a function that has it, so that a copy calls the original's."""

    def more(self) -> None:
        a = self.a
        self.called = lambda x: a(x)

    def first(self, x: Tensor) -> Tensor:
        y: Tensor = self.called(x)
        return y * 2 if float(y.detach().sum()) > 1e9 else y


@both
def test_a_part_that_a_copy_does_not_call_is_none(form: str) -> None:
    assert small(Functional(), form, budget=0.8).report.islands == ("b",)


class Named(Two):
    """Has a child by a name that is used for parts elsewhere."""

    def more(self) -> None:
        self.whole, self._names = self.a, self.b
        del self.a, self.b

    def forward(self, x: Tensor) -> Tensor:
        y = self.whole(x)
        found: Tensor = self._names(y * 2 if float(y.detach().sum()) > 1e9 else y)
        return found


@both
def test_a_child_may_have_any_name(form: str) -> None:
    assert small(Named(), form).report.islands == ("whole", "_names")


class Training(Two):
    """In training alone, reads what is inside a part."""

    def more(self) -> None:
        self.aux = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return (y, self.aux(self.a[:2](x))) if self.training else y


def test_a_class_that_cannot_train_with_what_is_left_is_refused() -> None:
    model, x = Training(), torch.randn(16, 8)
    with pytest.raises(fxprune.RestoreError, match=r"in training mode it raises .*ignore=") as caught:
        small(model)
    held = caught.value.pruned
    assert isinstance(held, Training) and isinstance(held.a, torch.fx.GraphModule)
    with pytest.warns(fxprune.TrainingWarning, match="in training mode it raises"):
        graph = small(model, "graph")
    assert any("in training mode it raises" in note for note in graph.report.notes)
    kept = small(model, budget=0.8, ignore="a.0")
    assert [tuple(y.shape) for y in kept.train()(x)] == [(16, 4), (16, 4)]


@pytest.mark.parametrize("method", ["taylor", "ippro", "kl", "spvr", "joint"])
def test_a_method_that_judges_by_outputs_is_refused(method: str) -> None:
    data = [(torch.randn(16, 8), torch.randint(0, 4, (16,)))]
    with pytest.raises(
        fxprune.ScorerError, match=r"judges by the model's outputs.*captured in parts \(a, b\).*variance"
    ):
        small(Two(), data=data, method=method)


def test_in_a_sweep_such_a_method_is_a_point_that_says_so() -> None:
    found = fxprune.sweep(Two().eval(), [torch.randn(16, 8)], 0.6, ["taylor", "l1"], recover=None, progress=False)
    taylor, l1 = found.points
    assert "judges by the model's outputs" in taylor.why and l1.verified


class Scaled(Two):
    """Hands a part a number that depends on values."""

    def more(self) -> None:
        self.b = _Times()

    def second(self, y: Tensor) -> Tensor:
        found: Tensor = self.b(y, round(float(y.detach().abs().sum()), 1))
        return found


class _Times(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = layers(8, 32, 4)

    def forward(self, y: Tensor, factor: float) -> Tensor:
        found: Tensor = self.inner(y * factor)
        return found


def test_batches_that_take_another_way_are_told() -> None:
    x = torch.ones(16, 8)
    with pytest.raises(
        fxprune.CalibrationError, match=r"batch 1: the model calls its part 'a' 0 times, 1 by batch 0; .*same"
    ):
        small(Branches(), data=[x, -x])
    with pytest.raises(
        fxprune.CalibrationError, match=r"batch 1: the model hands its part 'b' [\d.]+, [\d.]+ by batch 0"
    ):
        small(Scaled(), data=[x, 2 * x])


class Embedded(Two):
    """Reads parameters of its own, outside the parts."""

    def more(self) -> None:
        self.gain = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * self.gain.weight.sum())


def test_notes_are_about_the_parts_alone() -> None:
    assert not any("gain" in note for note in small(Embedded()).report.notes)


class Counted(Two):
    """Has numbers that none of the parts reads."""

    def more(self) -> None:
        self.a, self.b = layers(8, 24, 24), layers(24, 32, 4)
        self.a.out_channels, self.b.inner = 24, 32  # type: ignore[assignment]


def test_a_part_s_numbers_for_what_it_gives_stay() -> None:
    note = next(note for note in small(Counted()).report.notes if "no call has read these integers" in note)
    assert "b.inner (32)" in note and "out_channels" not in note


def test_what_is_true_of_a_graph_alone_is_not_said_of_the_class() -> None:
    model = Two()
    nn.utils.parametrizations.weight_norm(model.a[2])
    graph = small(model, "graph")
    assert any("computed weights" in note for note in graph.report.notes)
    assert not any("computed weights" in note for note in fxprune.restore(graph, model).report.notes)

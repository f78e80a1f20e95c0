"""Back in the original's class: of its own type, narrower, equal to the graph, trained as the original without what went."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.compiler.freeing import freely_captured
from tests.models.homes import Attending, Auxiliary, Caching, Gated, Halves, Literal, Normed, Packed, Shared, Targets
from tests.support.weights import randomise
from tests.support.zeroed import Step, as_pruned, other_gradients, plain, step

CASES: list[tuple[type[nn.Module], tuple[int, ...]]] = [
    (Attending, (4, 7, 12)),
    (Halves, (4, 3, 9, 9)),
    (Shared, (16, 7)),
    (Literal, (16, 6)),
    (Normed, (16, 6)),
]


def compiled(model: nn.Module, data: Tensor, budget: float = 0.6, **options: Any) -> Any:
    chosen = {"method": "random", "recover": None, "form": "module", "dynamic_shapes": {}, "progress": False} | options
    return fxprune.compile(model, data, budget, **chosen)


def made(kind: type[nn.Module], shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return kind().eval(), torch.randn(shape)


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_the_class_comes_back_narrower_and_computes_what_the_graph_does(
    kind: type[nn.Module], shape: tuple[int, ...]
) -> None:
    model, data = made(kind, shape)
    before = copy.deepcopy(model.state_dict())
    home = compiled(model, data, units=("channel", "head"))
    assert type(home) is kind and home.report.form == "module" and home.report.verified is not False
    assert sum(p.numel() for p in home.parameters()) == home.report.params[1] < home.report.params[0]
    assert home.state_dict().keys() == before.keys()
    graph = fxprune.apply(model, home.plan)
    torch.testing.assert_close(home(data), graph(data), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(home(data[:3]), graph(data[:3]), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for clone in (copy.deepcopy(home), pickle.loads(pickle.dumps(home))):
        assert torch.equal(clone(data), home(data))


@pytest.mark.parametrize(("kind", "shape"), CASES[:4])
def test_it_trains_as_the_original_without_what_went(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    model, data = made(kind, shape)
    home = compiled(model.double(), data.double(), units=("channel", "head")).double()
    original, keep, created = plain(copy.deepcopy(model), home.plan.keep)
    want: Step = step(as_pruned(original, keep), (data.double(),))
    got = step(home, (data.double(),))
    assert list(other_gradients(want, got, keep, created, 1e-8)) == []


def test_in_steps_and_in_a_sweep() -> None:
    model, data = made(Halves, (4, 3, 9, 9))
    home = compiled(model, data, 0.5, steps=2)
    assert (
        isinstance(home, Halves)
        and home.report.form == "module"
        and home.report.params[1] <= 0.5 * home.report.params[0]
    )
    graph = fxprune.apply(model, home.plan)
    torch.testing.assert_close(home(data), graph(data), rtol=1e-4, atol=1e-5)
    found = fxprune.sweep(model, data, [0.7, 0.5], ["random", "l2"], recover=None, form="module", progress=False)
    kept = [point.report.plan.keep.get("stem.weight", {0: range(32)})[0] for point in found.points]
    assert (
        len(kept) == 4
        and any(len(part) < 32 for part in kept)
        and all(sum(i < 16 for i in part) == sum(i >= 16 for i in part) for part in kept)
    )


def test_halves_keep_equal_numbers() -> None:
    model, data = made(Halves, (4, 3, 9, 9))
    home = compiled(model, data, 0.5, units="channel")
    assert isinstance(home, Halves)
    kept = home.plan.keep["stem.weight"][0]
    assert len(kept) < 32 and sum(i < 16 for i in kept) == sum(i >= 16 for i in kept)
    assert home.inner.in_channels == home.inner.weight.shape[1] == len(kept) // 2


def test_the_report_says_what_ties_cost_and_what_nobody_has_read() -> None:
    model, data = made(Halves, (4, 3, 9, 9))
    notes = "; ".join(compiled(model, data, 0.4, round_to=1).report.notes)
    assert re.search(r"go in step .* that costs of their score: stem \(\d+\.\d %\)", notes)
    assert re.search(r"no call has read these integers, .*: half \(16\); name a call that reads them with also=", notes)
    model, data = made(Literal, (16, 6))
    assert re.search(
        r"\d+ of \d+ units stay, of which the class cannot say", "; ".join(compiled(model, data).report.notes)
    )


def test_a_graph_with_unequal_halves_is_refused_and_says_where() -> None:
    model, data = made(Halves, (4, 3, 9, 9))
    graph = compiled(model, data, 0.5, form="graph")
    kept = graph.plan.keep["stem.weight"][0]
    assert sum(i < 16 for i in kept) != sum(i >= 16 for i in kept), "the draw makes them unequal"
    with pytest.raises(fxprune.RestoreError, match="form='module'"):
        fxprune.restore(graph, model)


def test_another_way_that_is_named_works_as_well() -> None:
    model, data = made(Halves, (4, 3, 9, 9))
    home = compiled(model, data, 0.5, also=[Halves.in_halves])
    assert home.half == home.stem.out_channels // 2 < 16
    torch.testing.assert_close(home.in_halves(data), home(data))
    unread = compiled(model, data, 0.5)
    assert unread.half == 16, "what no call reads stays"
    with pytest.raises(fxprune.RestoreError, match="called by wrong"):

        def wrong(model: Halves, x: Tensor) -> Tensor:
            return 2 * model(x)

        fxprune.restore(fxprune.apply(model, home.plan), model, also=[wrong])


def test_attributes_and_settings_follow() -> None:
    model, data = made(Attending, (4, 7, 12))
    home = compiled(model, data, 0.5, units="head")
    layer = home.layers[0]
    assert layer.heads < 4 and layer.inner == layer.heads * layer.head_dim == layer.out.in_features
    model, data = made(Shared, (16, 7))
    home = compiled(model, data, 0.6, units="channel")
    gates = [gate for gate in home.gates if isinstance(gate, Gated)]
    assert [gate.settings.hidden for gate in gates] == [gate.down.in_features for gate in gates]
    assert model.gates[0].settings.hidden == 48


def test_a_number_in_the_code_holds_what_it_names() -> None:
    model, data = made(Literal, (16, 6))
    home = compiled(model, data, 0.7)
    assert home.a.out_features == 32 and home.b.out_features < 16


def test_a_norm_that_is_written_out_makes_up_for_its_mean() -> None:
    model, data = made(Normed, (16, 6))
    home = compiled(model, data, 0.5)
    share = home.first.out_features / 32
    assert share < 1 and home.norm.small == pytest.approx(1e-2 / share)
    torch.testing.assert_close(home.norm.weight, torch.full_like(home.norm.weight, share**-0.5))


def test_budgets_are_kept_and_smaller_ones_give_smaller_models() -> None:
    model, data = made(Halves, (4, 3, 9, 9))
    sizes = [compiled(model, data, budget).report.params[1] for budget in (0.9, 0.7, 0.5, 0.3)]
    whole = sum(p.numel() for p in model.parameters())
    assert all(size <= whole * budget for size, budget in zip(sizes, (0.9, 0.7, 0.5, 0.3), strict=True))
    assert sizes == sorted(sizes, reverse=True)


def test_restore_takes_what_was_trained_since() -> None:
    model, data = made(Shared, (16, 7))
    home = compiled(model, data)
    graph = fxprune.apply(model, home.plan)
    with torch.no_grad():
        for parameter in graph.parameters():
            parameter.add_(0.1)
    found = fxprune.restore(graph, model)
    assert isinstance(found, Shared) and found.report.form == "module"
    torch.testing.assert_close(found(data), graph(data))


def test_hooks_and_training_flags_are_those_of_the_class() -> None:
    model, data = made(Attending, (4, 7, 12))
    seen: list[int] = []
    home = compiled(model, data, units="channel")
    home.layers[0].register_forward_hook(lambda *_: seen.append(1))
    home.train()(data)
    assert seen == [1] and all(module.training for module in home.modules())


def test_what_training_alone_reads_is_cut_with_the_rest() -> None:
    model, data = made(Auxiliary, (8, 3, 9, 9))
    with warnings.catch_warnings():
        warnings.simplefilter("error", fxprune.TrainingWarning)  # the class has its second head
        home = compiled(model, data, 0.6)
    kept = home.first.out_channels
    assert kept < 16 and home.beside[0].in_channels == kept == home.beside[0].weight.shape[1]
    assert home.beside[0].out_channels == 12, "what the evaluation does not read is not chosen from"
    assert home.never.shape == (16,) and any("never" in note for note in home.report.notes)
    optimizer = torch.optim.SGD(home.train().parameters(), 0.05)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = sum(F.cross_entropy(y, torch.arange(8) % 4) for y in home(data))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_a_forward_that_wants_targets_in_training_comes_home() -> None:
    model, data = made(Targets, (16, 6))
    home = compiled(model, data, 0.5)
    assert home.first.out_features < 32
    home.train()(data, torch.arange(16) % 3).backward()
    assert home.first.weight.grad is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "class"}, "graph, module"),
        ({"min_keep": 0}, "min_keep"),
        ({"units": "block"}, "block"),
        ({"form": "graph", "also": [Halves.in_halves]}, "form='module'"),
    ],
)
def test_what_cannot_be_is_said_at_once(options: dict[str, Any], message: str) -> None:
    model, data = made(Shared, (16, 7))
    with pytest.raises(ValueError, match=message):
        compiled(model, data, **options)


def test_what_a_class_keeps_in_evaluation_mode_is_forgotten() -> None:
    model, data = made(Caching, (5, 6))
    model(data)
    kept = model.cache["bias"]  # type: ignore[index, operator]
    home = compiled(model, data, 0.7)
    graph = fxprune.apply(model, home.plan)
    torch.testing.assert_close(home(data), graph(data))
    assert sum(p.numel() for p in home.parameters()) < sum(p.numel() for p in model.parameters())
    assert model.cache["bias"] is kept  # type: ignore[index, operator]


def test_a_pickle_without_the_report_needs_no_fxprune(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval(), torch.randn(5, 6)
    home = compiled(model, data)
    want = home(data)
    assert fxprune.detach(home) is home and not hasattr(home, "report")
    torch.save((home, data, want), tmp_path / "model.pt")
    code = (
        "import sys; sys.modules['fxprune'] = None; import torch; "
        "model, x, y = torch.load('model.pt', weights_only=False); assert torch.equal(model(x), y)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    with pytest.raises(fxprune.FxpruneError, match="expected a model that"):
        fxprune.detach(home)
    with pytest.raises(fxprune.FxpruneError, match="expected a model in its own class, got a graph"):
        fxprune.detach(compiled(model, data, form="graph"))


class Scaled(nn.Module):
    """Attention that scales by the width of a head: by what PyTorch makes of it, or by a number."""

    def __init__(self, scale: float | None) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(6, 24), nn.Linear(6, 24), nn.Linear(6, 24), nn.Linear(24, 5)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (3, -1)).transpose(1, 2) for part in (self.q(x), self.k(x), self.v(x)))
        y = nn.functional.scaled_dot_product_attention(q, k, value=v, scale=self.scale)
        return self.out(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("scale", [None, 0.25])
def test_heads_stay_as_wide_as_what_they_are_scaled_by(scale: float | None) -> None:
    torch.manual_seed(0)
    model, data = randomise(Scaled(scale), 0, (torch.randn(3, 5, 6),)).eval(), torch.randn(3, 5, 6)
    home = compiled(model, data, 0.7, units=("head_dim",))
    assert home.v.out_features == home.out.in_features < 24
    assert (home.q.out_features < 24) is (scale is not None)


def test_what_a_view_leaves_open_is_of_one_length() -> None:
    model, data = made(Packed, (3, 5, 6))
    home = compiled(model, data, 0.6, units=("head_dim",))
    assert home.qkv.out_features == 3 * home.out.in_features < 72
    graph = fxprune.apply(model, home.plan)
    torch.testing.assert_close(home(data), graph(data), rtol=1e-4, atol=1e-5)


def test_a_class_is_loaded_from_one_capture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, data = made(Halves, (4, 3, 9, 9))
    home = compiled(model, data, 0.5)
    fxprune.save(home, tmp_path / "home")
    count = []

    def counted(*args: Any, **options: Any) -> Any:
        count.append(1)
        return freely_captured(*args, **options)

    monkeypatch.setattr("fxprune.compiler.application.freely_captured", counted)
    again = fxprune.load(tmp_path / "home", model)
    assert len(count) == 1 and torch.equal(again(data), home(data))

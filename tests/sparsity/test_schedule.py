"""A schedule ends at its budget with units that are exactly zero, and removing them changes nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxprune
from fxprune._base.errors import PlanError
from fxprune.sparsity.shapes import SHAPES
from tests.support.schedules import attending, convolutional, images, same, schedule_of, tokens, trained

SPARSITIES = [None, "group_lasso", "growing", "bn_scale"]


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_removal_is_exact_on_a_residual_network(sparsity: Any) -> None:
    model, data = convolutional(), images()
    schedule = schedule_of(model, data, sparsity=sparsity)
    before = sum(p.numel() for p in model.parameters())
    trained(model, data, schedule, 14)
    pruned = schedule.finish()
    assert sum(p.numel() for p in pruned.parameters()) <= 0.5 * before
    assert same(pruned, model, data[0]) < 1e-9 and isinstance(pruned, fxprune.PrunedModule)
    assert schedule.zero["0"] > 0 and pruned.report.certificate.verified


@pytest.mark.parametrize("activation", [torch.sigmoid, torch.cos, F.softplus], ids=lambda f: f.__name__)
def test_an_activation_that_does_not_keep_zero(activation: Any) -> None:
    model, data = convolutional(activation), images()
    schedule = schedule_of(model, data)
    trained(model, data, schedule, 12)
    pruned = schedule.finish()
    assert schedule.zero["3.conv1"] > 0 and same(pruned, model, data[0]) < 1e-9
    gone = (model[3].conv1.weight == 0).flatten(1).all(dim=1)
    assert int(gone.sum()) == schedule.zero["3.conv1"]
    assert not model[3].conv2.weight[:, gone].any(), "what reads a unit sees f(0)"
    assert float(activation(torch.zeros(1))) != 0


@pytest.mark.parametrize("units", ["channel", "head", "head_dim", ("channel", "head", "head_dim")])
def test_a_transformer_layer(units: Any) -> None:
    model, data = attending(), tokens()
    schedule = schedule_of(model, data, 0.7, units=units)
    trained(model, data, schedule, 12, torch.optim.AdamW(model.parameters(), 1e-2))
    pruned = schedule.finish()
    assert sum(schedule.zero.values()) > 0 and same(pruned, model, data[0]) < 1e-9


def test_a_norms_own_channels_count_as_zeros() -> None:
    model, data = attending(), tokens()
    schedule = schedule_of(model, data, 0.6, ignore=["q", "k", "v", "up"])
    trained(model, data, schedule, 12)
    pruned = schedule.finish()
    assert schedule.zero["embed"] > 0 and same(pruned, model, data[0]) < 1e-9
    assert any("norms are written out" in note for note in pruned.report.notes)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["graph", "module"])
def test_a_language_model_with_shared_keys_and_tied_embeddings(form: Any) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: its extra is models")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=40, num_hidden_layers=2, tie_word_embeddings=True, **sizes)
    model, ids = transformers.LlamaForCausalLM(config).double(), torch.randint(40, (4, 6))
    schedule = fxprune.Schedule(model, {"input_ids": ids}, 0.75, steps=4, every=1, form=form, dynamic_shapes={})
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(5):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    pruned = schedule.finish()
    with torch.no_grad():
        outputs = (one.eval()(input_ids=ids).logits for one in (pruned, model))
        assert torch.allclose(*outputs, atol=1e-6)  # rotary positions and norms work in float32
    assert sum(schedule.zero.values()) > 12 and isinstance(pruned, type(model)) == (form == "module")


@pytest.mark.parametrize("make, data", [(convolutional, images()), (attending, tokens())], ids=["conv", "attention"])
def test_the_class_comes_back(make: Any, data: Any) -> None:
    model = make()
    schedule = schedule_of(model, data, 0.7, form="module")
    trained(model, data, schedule, 12)
    pruned = schedule.finish()
    assert type(pruned) is type(model) and same(pruned, model, data[0]) < 1e-9
    assert sum(p.numel() for p in pruned.parameters()) < 0.71 * sum(p.numel() for p in model.parameters())


def test_momentum_does_not_revive_what_is_zero() -> None:
    model, data = convolutional(), images()
    schedule = schedule_of(model, data)
    trained(model, data, schedule, 10)
    gone = (model[3].conv1.weight == 0).flatten(1).all(dim=1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for parameter in model.parameters():  # as if it had been trained for long
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    assert model[3].conv1.weight[gone].any(), "this optimizer writes there"
    schedule.step()
    assert gone.any() and not model[3].conv1.weight[gone].any() and not model[3].norm1.bias[gone].any()


def test_zero_units_only_grow_in_number_and_end_at_the_budget() -> None:
    model, data = convolutional(), images()
    schedule, seen = schedule_of(model, data, fxprune.Budget(macs=0.4), every=1), list[Any]()
    whole = schedule.cost.macs
    for _ in range(10):
        trained(model, data, schedule, 1)
        seen.append((schedule.share, schedule.cost.macs, {n for n, count in schedule.zero.items() if count}))
    assert [cost for _, cost, _ in seen] == sorted((cost for _, cost, _ in seen), reverse=True)
    assert seen[-1][1] <= 0.4 * whole < seen[3][1]
    for share, cost, _ in seen:
        assert cost <= whole - share * (whole - int(0.4 * whole)) + 1


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_rise_from_dense_to_the_budget(name: str) -> None:
    times = [i / 20 for i in range(21)]
    values = [SHAPES[name](time) for time in times]
    assert values == sorted(values) and abs(values[0]) < 0.01 and values[-1] == pytest.approx(1)
    assert SHAPES["cubic"](0.5) == pytest.approx(0.875) and SHAPES["one_cycle"](5 / 14) == pytest.approx(0.5, abs=1e-3)


def test_group_lasso_makes_units_exactly_zero_by_itself_and_they_go_too() -> None:
    model, data = convolutional(), images()
    schedule = schedule_of(model, data, 0.99, sparsity="group_lasso", strength=0.12, steps=40, every=40)
    trained(model, data, schedule, 39)
    zero = (model[3].conv1.weight == 0).flatten(1).all(dim=1)
    assert zero.any() and not any(schedule.zero.values()), "it is the penalty alone, no choice was made"
    pruned = schedule.finish()
    assert pruned.report.params[1] < 0.9 * pruned.report.params[0] and same(pruned, model, data[0]) < 1e-9


def test_kept_channels_come_in_multiples() -> None:
    model, data = convolutional(), images()
    schedule = schedule_of(model, data, 0.6, sparsity="group_lasso", strength=0.065, round_to=4, steps=30, every=30)
    trained(model, data, schedule, 29)  # no choice was made: what is zero by the penalty alone is not in multiples
    pruned = schedule.finish()
    sizes = [len(pruned.get_parameter(f"{i}.conv1.weight")) for i in (3, 4)]
    zero = [int((model[i].conv1.weight == 0).flatten(1).all(dim=1).sum()) for i in (3, 4)]
    assert all(size % 4 == 0 for size in sizes) and sum(sizes) < 48 and any(count % 4 for count in zero)
    assert same(pruned, model, data[0]) < 1e-9


def test_growing_regularisation_shrinks_what_goes_and_nothing_else() -> None:
    model, data = convolutional(), images()
    schedule = schedule_of(model, data, sparsity="growing", strength=4.0, steps=20, every=20)
    before = copy.deepcopy(model)
    for _ in range(19):
        schedule.step(0.1)
    share = model[3].conv1.bias / before[3].conv1.bias
    assert ((share - 1).abs() < 1e-12).any() and (share < 0.1).any() and ((share < 0.1) | (share > 0.999)).all()


def test_bn_scale_reaches_scales_alone() -> None:
    model, data = convolutional(), images()
    schedule = schedule_of(model, data, sparsity="bn_scale", strength=1.0, every=10)
    before = copy.deepcopy(model)
    schedule.step(0.25)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before.get_parameter(n))}
    norms = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert moved == norms and torch.allclose(model[1].weight, before[1].weight - 0.25)


@pytest.mark.parametrize("method", ["l1", "fpgm", "variance", "random"])
def test_any_criterion_without_gradients(method: str) -> None:
    model, data = convolutional(), images()
    schedule = schedule_of(model, data, method=method)
    trained(model, data, schedule, 10)
    assert same(schedule.finish(), model, data[0]) < 1e-9


def test_a_resumed_run_is_the_same() -> None:
    data = images()
    whole, halved = convolutional(), convolutional()
    one, other = (schedule_of(m, data, sparsity="growing", strength=1.0) for m in (whole, halved))
    trained(whole, data, one, 12, torch.optim.SGD(whole.parameters(), 0.05))
    trained(halved, data, other, 5, torch.optim.SGD(halved.parameters(), 0.05))
    again = convolutional()
    resumed = schedule_of(again, data, sparsity="growing", strength=1.0)
    again.load_state_dict(halved.state_dict())
    state = other.state_dict()
    resumed.load_state_dict(state)
    assert resumed.count == 5 and resumed.zero == other.zero
    trained(again, data, resumed, 7, torch.optim.SGD(again.parameters(), 0.05))
    assert resumed.zero == one.zero
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    with pytest.raises(PlanError, match="steps: expected 9, got 10"):
        schedule_of(convolutional(), data, steps=9).load_state_dict(state)
    with pytest.raises(PlanError, match=r"another schedule: budget: expected .*0\.6"):
        schedule_of(convolutional(), data, 0.6).load_state_dict(state)
    with pytest.raises(PlanError, match="another model"):
        schedule_of(attending(), tokens()).load_state_dict(state)
    with pytest.raises(PlanError, match="expected what Schedule"):
        resumed.load_state_dict({"count": 3})


def test_the_model_is_as_it_was_when_a_schedule_is_made() -> None:
    model, data = convolutional(), images()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    schedule_of(model, data)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_experts_stay_that_a_softmax_counts() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router, self.value, self.head = nn.Linear(6, 8), nn.Linear(6, 12), nn.Linear(8, 4)
            self.mix = nn.Linear(12, 4)

        def forward(self, x):
            return self.head(self.router(x).softmax(-1)) + self.mix(torch.relu(self.value(x)))

    torch.manual_seed(0)
    model, x = Routed().double(), torch.randn(16, 6, dtype=torch.float64)
    schedule = fxprune.Schedule(model, [x], 0.8, steps=2)
    for _ in range(2):
        schedule.step()
    pruned = schedule.finish()
    assert schedule.zero["router"] == 0 and schedule.zero["value"] > 0 and same(pruned, model, x) < 1e-9
    assert any("stay whole: router" in note for note in pruned.report.notes)

"""Training after pruning: losses against formulas, runs against uninterrupted ones, digits against the dense net."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader, Dataset, TensorDataset

import fxprune
from fxprune._base.errors import CalibrationError, FxpruneError, PlanError, TrainingError
from fxprune.contrib import demo
from fxprune.runtimes.setting import threads_set
from fxprune.training import RECIPES, History, Recipe, finetune, retrain
from fxprune.training.checkpoint import FILE
from fxprune.training.objective import Objective
from fxprune.training.recipe import recipe_of

SGD = Recipe(epochs=3, lr=0.05, optimizer="sgd", weight_decay=1e-3, batch_size=8)
ADAMW = Recipe(epochs=3, lr=0.01, warmup=0.5, clip_norm=1.0, batch_size=8)


class Net(nn.Module):
    """Everything with a state of its own: batch norm, dropout, a tied weight, a frozen one, a mask."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.3)
        self.frozen = nn.Linear(4, 4)
        self.frozen.requires_grad_(False)
        self.head = nn.Linear(4, classes)
        self.register_buffer("mask", torch.ones(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.head(self.drop(self.frozen(y) * self.mask))


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Augments by all three global generators; raises what it is told to, at the so-many-th sample."""

    def __init__(self, size: int = 36) -> None:
        draw = torch.Generator().manual_seed(5)
        self.x = torch.randn(size, 1, 4, 4, generator=draw)
        self.y = torch.randint(3, (size,), generator=draw)
        self.left: int | None = None
        self.error: BaseException = KeyboardInterrupt()

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise self.error
        noise = torch.rand(()) + random.random() + float(np.random.rand())
        return self.x[index] + 0.1 * noise, self.y[index]


def _net(seed: int = 0, **kwargs: Any) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net(**kwargs)


def _pairs(size: int = 16) -> list[tuple[Tensor, Tensor]]:
    data = Noisy(size)
    return list(zip(data.x.split(8), data.y.split(8), strict=True))


def _digest(model: nn.Module) -> str:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    found = hashlib.sha256()
    for name, tensor in tensors:
        found.update(name.encode() + tensor.detach().numpy().tobytes())
    return found.hexdigest()


# -- the whole way, on real data -------------------------------------------------------------------------------


RIGHT = Recipe(optimizer="sgd", lr=0.05, nesterov=True, weight_decay=5e-4, warmup=1.0, batch_size=32)


@pytest.fixture(scope="module")
def digits() -> Iterator[tuple[demo.Digits, nn.Module, fxprune.PrunedModule]]:
    """scikit-learn's digits, a dense residual network that knows them, and half of it."""
    with threads_set(1):
        data = demo.load_digits()
        model = demo.make_model(width=8)
        history = finetune(model, TensorDataset(*data.train), recipe=RIGHT, epochs=5, progress=False)
        losses = [epoch.loss for epoch in history.epochs]
        assert losses[-1] < 0.2 * losses[0]
        half = fxprune.compile(
            model.eval(), demo.batches(data.train), fxprune.Budget(macs=0.5), progress=False, recover=None
        )
        yield data, model, half


def test_half_of_the_macs_gone_recovers_to_within_a_point(digits: Any) -> None:
    data, model, half = digits
    pruned = copy.deepcopy(half)
    macs = fxprune.report(pruned).macs
    assert macs[1] <= 0.5 * macs[0]
    dense, raw, before = demo.accuracy(model, data.test), demo.accuracy(pruned, data.test), _digest(model)
    assert dense > 97.0
    assert raw < dense - 10.0
    model.train()
    history = finetune(
        pruned, TensorDataset(*data.train), teacher=model, epochs=5, lr=3e-3, batch_size=32,
        validation=[data.test], progress=False,
    )  # fmt: skip
    assert all(module.training for module in model.modules())
    assert _digest(model) == before
    tuned = demo.accuracy(pruned, data.test)
    assert tuned >= dense - 1.0
    assert 100 * history.before["accuracy"] == pytest.approx(raw, abs=1e-3)
    assert 100 * history.epochs[-1].metrics["accuracy"] == pytest.approx(tuned, abs=1e-3)
    assert not any(module.training for module in pruned.modules())
    print(f"dense {dense:.2f} %, half {raw:.2f} %\n{history}")


def test_retrain_forgets_the_weights_and_learns_anew(digits: Any) -> None:
    data, _, half = digits
    one, other = copy.deepcopy(half), copy.deepcopy(half)
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            tensor.zero_()
    for pruned in (one, other):
        history = retrain(
            pruned, TensorDataset(*data.train), recipe=RIGHT, epochs=2, validation=[data.test], progress=False
        )
    assert _digest(one) == _digest(other)  # nothing of the old weights is left
    assert history.before["accuracy"] < 0.5
    assert history.epochs[-1].metrics["accuracy"] > 0.85


# -- the same again ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("form", ["dataset", "loader", "own generator", "workers"])
def test_resumed_equals_uninterrupted(tmp_path: Path, recipe: Recipe, form: str) -> None:
    def data() -> Any:
        source = Noisy()
        if form == "dataset":
            return source
        generator = torch.Generator().manual_seed(torch.seed() % 1000) if form == "own generator" else None
        workers = 1 if form == "workers" else 0
        return DataLoader(source, 8, shuffle=True, generator=generator, num_workers=workers)

    whole, parts = _net(), _net()
    expected = finetune(whole, data(), recipe=recipe, progress=False)
    source = data()
    if form == "workers":  # theirs are copies of the data: interrupt the model instead
        parts.register_forward_pre_hook(_interrupter(after=2 + 5 + 3))
    else:
        samples = source if isinstance(source, Noisy) else source.dataset
        samples.left = 8 + 36 + 20  # the first look, an epoch, and a part of the second
    with pytest.raises(KeyboardInterrupt):
        finetune(parts, source, recipe=recipe, checkpoint_dir=tmp_path, progress=False)
    assert _digest(parts) != _digest(whole)
    assert parts.training and parts.norm.training
    assert all(parameter.grad is None for parameter in parts.parameters())
    fresh = _net(7)
    torch.manual_seed(99)  # what the process did meanwhile does not matter
    found = finetune(fresh, data(), recipe=recipe, checkpoint_dir=tmp_path, progress=False)
    assert _digest(fresh) == _digest(whole)
    assert found.resumed_at == 1
    assert [e.loss for e in found.epochs] == [e.loss for e in expected.epochs]
    again = finetune(_net(), data(), recipe=recipe, checkpoint_dir=tmp_path, progress=False)
    assert again.resumed_at == 3 and len(again.epochs) == 3
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def _interrupter(after: int) -> Callable[..., None]:
    """Returns a hook that interrupts the call after so many."""
    calls = iter(range(after))

    def hook(*_: Any) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    return hook


def test_retrain_is_resumed_too(tmp_path: Path) -> None:
    whole, parts, fresh, data = _net(), _net(1), _net(2), Noisy()
    retrain(whole, data, recipe=SGD, progress=False)
    data.left = 8 + 36 + 20
    with pytest.raises(KeyboardInterrupt):
        retrain(parts, data, recipe=SGD, checkpoint_dir=tmp_path, progress=False)
    data.left = None
    assert retrain(fresh, data, recipe=SGD, checkpoint_dir=tmp_path, progress=False).resumed_at == 1
    assert _digest(fresh) == _digest(whole)


def _reset(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.zero_()


def test_the_global_random_states_stay() -> None:
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    expected = (torch.rand(()).item(), random.random(), np.random.rand())
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    generator = torch.Generator().manual_seed(4)
    before = generator.get_state()
    loader = DataLoader(Noisy(), 8, shuffle=True, generator=generator)
    finetune(_net(), loader, recipe=SGD, validation=_pairs(), progress=False)
    assert (torch.rand(()).item(), random.random(), np.random.rand()) == expected
    assert torch.equal(generator.get_state(), before)


def test_an_error_leaves_the_last_finished_step() -> None:
    stopped, whole, batches, calls = _net(), _net(), _pairs(32), []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(len(targets))
        return F.cross_entropy(outputs, targets) * (math.nan if len(calls) == 1 + 3 else 1.0)

    with pytest.raises(TrainingError, match=r"epoch 1, step 3: expected finite numbers, got a loss of nan"):
        finetune(stopped, batches, recipe=SGD, schedule="constant", loss=loss, progress=False)
    finetune(whole, batches[:2], recipe=SGD, epochs=1, schedule="constant", progress=False)
    assert _digest(stopped) == _digest(whole)  # batch norm's buffers too
    assert len(calls) == 4  # the first look, then three steps


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_step() -> None:
    model, before = _net(), _digest(_net())

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - outputs.detach()).square().sum().sqrt()  # zero, of slope 0 / 0

    with pytest.raises(TrainingError, match=r"step 1: .* a loss of 0 and a gradient of norm nan"):
        finetune(model, _pairs(), recipe=SGD, loss=loss, progress=False)
    assert _digest(model) == before


def test_an_interrupt_waits_for_the_step_to_end() -> None:
    stopped, whole, steps = _net(), _net(), []

    def interrupt(*_: Any) -> None:
        steps.append(1)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    hook = register_optimizer_step_pre_hook(interrupt)
    # a process in the background may ignore the signal
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            finetune(stopped, _pairs(32), recipe=SGD, schedule="constant", progress=False)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        hook.remove()
        signal.signal(signal.SIGINT, before)
    finetune(whole, _pairs(32)[:2], recipe=SGD, epochs=1, schedule="constant", progress=False)
    assert len(steps) == 2
    assert _digest(stopped) == _digest(whole)


def test_flags_come_back_one_by_one() -> None:
    model = _net()
    model.norm.eval()
    seen = []
    model.norm.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    finetune(model, _pairs(), recipe=SGD, epochs=1, validation=_pairs(), progress=False)
    assert model.training and not model.norm.training
    assert True in seen and False in seen


# -- checkpoints ------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    finetune(_net(), Noisy(), recipe=SGD, checkpoint_dir=tmp_path, progress=False)
    return tmp_path


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "foreign"])
def test_a_damaged_checkpoint_is_refused(saved: Path, damage: str) -> None:
    path = saved / FILE
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-9])
    elif damage == "flip":
        content[-9] ^= 1
        path.write_bytes(content)
    elif damage == "text":
        path.write_text("not a checkpoint")
    else:
        from safetensors.torch import save_file

        save_file({"weights/x": torch.ones(1)}, path)
    model = _net(4)
    before = _digest(model)
    with pytest.raises(PlanError, match="resume=False"):
        finetune(model, Noisy(), recipe=SGD, checkpoint_dir=saved, progress=False)
    assert _digest(model) == before
    finetune(model, Noisy(), recipe=SGD, epochs=1, checkpoint_dir=saved, resume=False, progress=False)
    again = finetune(_net(), Noisy(), recipe=SGD, epochs=1, checkpoint_dir=saved, progress=False)
    assert again.resumed_at == 1


def test_a_checkpoint_of_another_run_or_model_is_refused(saved: Path) -> None:
    def go_on(model: nn.Module = _net(), data: Any = None, **changes: Any) -> None:  # noqa: B008
        finetune(model, data or Noisy(), recipe=SGD, checkpoint_dir=saved, progress=False, **changes)

    with pytest.raises(PlanError, match=r"another run: recipe: expected .*0.02"):
        go_on(lr=0.02)
    with pytest.raises(PlanError, match="another run: seed: expected 1, got 0"):
        go_on(seed=1)
    with pytest.raises(PlanError, match="another run: steps: expected 2, got 5"):
        go_on(data=_pairs())
    with pytest.raises(PlanError, match=r"another model: head.bias: expected \[5\], got \[3\]"):
        go_on(_net(classes=5))
    with pytest.raises(PlanError, match=r"another model: only the model has '1\.bias'"):
        go_on(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))


# -- formulas ---------------------------------------------------------------------------------------------------


def test_label_smoothing_is_its_formula() -> None:
    logits, classes = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 4, 2, 2, 1, 3])
    soft = torch.full((6, 5), 0.1 / 5, dtype=torch.float64)
    soft[torch.arange(6), classes] += 0.9
    expected = -(soft * torch.log(torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True))).sum(1).mean()
    objective = Objective(Recipe(label_smoothing=0.1))
    torch.testing.assert_close(objective(logits, classes), expected)
    maps = logits.reshape(2, 3, 5).movedim(-1, 1)  # [batch, classes, positions]
    torch.testing.assert_close(objective(maps, classes.reshape(2, 3)), expected)
    tokens = logits.reshape(1, 6, 5)  # [batch, positions, classes]
    torch.testing.assert_close(objective(tokens, classes.reshape(1, 6)), expected)


def test_distillation_is_its_formula() -> None:
    student, teacher = torch.randn(2, 4, 3), torch.randn(4, 3)
    student = student[0].requires_grad_()
    classes = torch.tensor([0, 2, -100, 1])

    def softmax(x: Tensor) -> Tensor:
        return torch.exp(x / 3.0) / torch.exp(x / 3.0).sum(1, keepdim=True)

    p, q = softmax(teacher), softmax(student)
    rows = (p * (p / q).log()).sum(1)
    objective = Objective(Recipe(distill_weight=0.3, temperature=3.0))
    torch.testing.assert_close(objective(student, None, teacher), 9.0 * rows.mean())
    counted = rows[classes != -100].mean()
    expected = 0.7 * F.cross_entropy(student, classes) + 0.3 * 9.0 * counted
    torch.testing.assert_close(objective(student, classes, teacher), expected)
    torch.testing.assert_close(objective(student, classes), F.cross_entropy(student, classes))
    # Hinton's own form has the same gradient: a cross-entropy with the teacher's soft targets
    (ours,) = torch.autograd.grad(objective(student, None, teacher), student)
    (his,) = torch.autograd.grad(9.0 * -(p * softmax(student).log()).sum(1).mean(), student)
    torch.testing.assert_close(ours, his)


def test_values_are_distilled_by_squared_error() -> None:
    outputs, taught, targets = torch.randn(3, 4, 2)
    objective = Objective(Recipe(distill_weight=0.25))
    expected = 0.75 * ((outputs - targets) ** 2).mean() + 0.25 * ((outputs - taught) ** 2).mean()
    torch.testing.assert_close(objective(outputs, targets, taught), expected)
    alone = Objective(Recipe(distill="mse"))(outputs, None, taught)
    torch.testing.assert_close(alone, ((outputs - taught) ** 2).mean())


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_rates_are_torchs_cosine(name: str) -> None:
    recipe = dataclasses.replace(RECIPES[name], epochs=4, warmup=0.0)
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4 * 5)
    for step in range(20):
        assert recipe.rate(step, 5) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        schedule.step()


def test_rates_rise_then_fall_to_the_end() -> None:
    recipe = Recipe(epochs=3, lr=1.0, warmup=0.5, final_lr=0.1)
    rates = [recipe.rate(step, 4) for step in range(12)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[7] == pytest.approx(0.55)
    assert rates == [*rates[:2], *sorted(rates[2:], reverse=True)]
    assert recipe.rate(12, 4) == pytest.approx(0.1)
    assert {Recipe(schedule="constant", lr=0.2).rate(step, 3) for step in range(9)} == {0.2}


def test_recipes_hold_what_the_papers_say() -> None:
    spvr, vbp = RECIPES["spvr"], RECIPES["vbp"]
    assert (spvr.optimizer, spvr.momentum, spvr.epochs, spvr.batch_size) == ("sgd", 0.9, 200, 128)
    assert (vbp.optimizer, vbp.lr, vbp.epochs, vbp.weight_decay, vbp.batch_size) == ("adamw", 1.5e-5, 10, 0.01, 32)
    assert all(recipe.schedule == "cosine" and "ours" in recipe.source for recipe in RECIPES.values())


def test_decay_spares_biases_and_norms() -> None:
    decayed, spared = _net(), _net()
    zero = Recipe(epochs=1, lr=0.1, optimizer="sgd", weight_decay=0.5, schedule="constant", momentum=0.0)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.sum() * 0.0

    x = [(torch.zeros(2, 1, 4, 4), torch.zeros(2).long())]
    finetune(decayed, x, recipe=zero, decay_all=True, loss=loss, progress=False)
    finetune(spared, x, recipe=zero, loss=loss, progress=False)
    start = dict(_net().named_parameters())
    for name, parameter in decayed.named_parameters():
        torch.testing.assert_close(parameter, start[name] * (1.0 if "frozen" in name else 0.95))
    for name, parameter in spared.named_parameters():
        factor = 0.95 if parameter.dim() > 1 and "frozen" not in name else 1.0
        torch.testing.assert_close(parameter, start[name] * factor)


def test_the_gradient_is_clipped() -> None:
    model = nn.Linear(2, 1, bias=False)
    start = model.weight.detach().clone()
    plain = Recipe(epochs=1, lr=1.0, optimizer="sgd", momentum=0.0, weight_decay=0.0, clip_norm=0.5)
    finetune(
        model, [(torch.tensor([[30.0, 40.0]]), torch.zeros(1))], recipe=plain, schedule="constant",
        loss=lambda y, _: y.sum(), progress=False,
    )  # fmt: skip
    torch.testing.assert_close(start - model.weight, torch.tensor([[0.3, 0.4]]))


# -- data, metrics, forms ---------------------------------------------------------------------------------------


def test_distillation_alone_needs_no_targets() -> None:
    student, teacher = _net(1), _net(2)
    inputs = [x for x, _ in _pairs(32)]
    history = finetune(student, inputs, teacher=teacher, recipe=SGD, epochs=8, validation=inputs, progress=False)
    assert history.epochs[-1].metrics["loss"] < 0.5 * history.before["loss"]
    assert set(history.before) == {"loss"}


def test_metrics_are_the_users_and_stay_as_they_are() -> None:
    from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

    given = {"top2": MulticlassAccuracy(3, top_k=2, average="micro"), "f1": MulticlassF1Score(3)}
    model = _net()
    history = finetune(model, _pairs(), recipe=SGD, epochs=1, validation=_pairs(), metrics=given, progress=False)
    model.eval().requires_grad_(False)
    logits, classes = (torch.cat(parts) for parts in zip(*[(model(x), y) for x, y in _pairs()], strict=True))
    expected = (logits.topk(2).indices == classes[:, None]).any(1).float().mean()
    assert history.epochs[0].metrics["top2"] == pytest.approx(float(expected))
    assert history.epochs[0].metrics["loss"] == pytest.approx(float(F.cross_entropy(logits, classes)), rel=1e-5)
    assert set(history.before) == {"loss", "top2", "f1"}
    assert given["top2"].update_count == 0
    with pytest.raises(ValueError, match=r"metric 'MulticlassAccuracy': expected one number, got \[3\]"):
        finetune(
            _net(), _pairs(), recipe=SGD, validation=_pairs(), metrics=MulticlassAccuracy(3, average=None),
            progress=False,
        )  # fmt: skip


def test_other_forms_of_data() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(7, 5), nn.Linear(5, 7)

        def forward(self, ids: Tensor, scale: Tensor) -> dict[str, Tensor]:
            return {"logits": self.head(self.table(ids) * scale[:, None, None])}

    labels = torch.tensor([[1, 2, -100], [3, 4, 5]])
    batch = {"ids": torch.tensor([[0, 1, 2], [2, 3, 4]]), "scale": torch.ones(2), "labels": labels}
    model = Tokens()
    history = finetune(model, [batch] * 4, recipe=ADAMW, lr=0.1, epochs=8, validation=[batch], progress=False)
    assert history.epochs[-1].metrics["accuracy"] == 1.0  # of the five labels that count

    class Endless:  # no len(): the rate moves once an epoch
        def __iter__(self) -> Iterator[dict[str, Tensor]]:
            yield from [batch] * 3

    history = finetune(Tokens(), Endless(), recipe=SGD, progress=False)
    assert [epoch.lr for epoch in history.epochs] == pytest.approx([0.05, 0.0375, 0.0125])

    draw = torch.randn(20, 3)
    pairs = [(draw, draw[:, :2])]
    values = finetune(nn.Linear(3, 2), pairs, recipe=ADAMW, lr=0.1, epochs=60, validation=pairs, progress=False)
    assert values.epochs[-1].metrics["loss"] < 0.02 * values.before["loss"]


def test_bf16_trains_float32_weights_nearly_alike() -> None:
    plain, model = _net(), _net()
    expected = finetune(plain, _pairs(), recipe=SGD, progress=False)
    found = finetune(model, _pairs(), recipe=SGD, mixed_precision="bf16", progress=False)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert "forward" not in vars(model)
    losses = [[epoch.loss for epoch in history.epochs] for history in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]


def test_history_is_a_table() -> None:
    history = finetune(_net(), _pairs(), recipe=SGD, epochs=2, validation=_pairs(), progress=False)
    lines = str(history).splitlines()
    assert " ".join(lines[0].split()) == "epoch training loss validation loss validation accuracy lr seconds"
    assert [line.split()[0] for line in lines[2:]] == ["before", "1", "2"]
    assert History.from_dict(history.to_dict(), "here").epochs == history.epochs


# -- what cannot work is said at once ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"recipe": "vpb"}, ValueError, "expected one of 'default', 'spvr', 'ippro', 'vbp', got 'vpb'"),
        ({"recipe": 3}, TypeError, "expected a name or a fxprune.Recipe, got int"),
        ({"epochs": 0}, ValueError, "epochs: expected a whole number of at least 1, got 0"),
        ({"lr": -1.0}, ValueError, "lr: expected a number above 0, got -1.0"),
        ({"lr": math.nan}, ValueError, "lr: expected a number above 0, got nan"),
        ({"wd": 0.1}, TypeError, "unknown argument 'wd': a recipe has epochs, lr"),
        ({"optimizer": "adam"}, ValueError, "optimizer: expected 'sgd' or 'adamw', got 'adam'"),
        ({"label_smoothing": 1.0}, ValueError, "label_smoothing: expected"),
        ({"label_smoothing": 0.1, "loss": F.cross_entropy}, ValueError, "smooth in it"),
        ({"loss": lambda y, t: y}, ValueError, r"loss: expected a tensor of one number.*\[8, 3\]"),
        ({"mixed_precision": "fp8"}, ValueError, "expected 'no' or 'bf16', got 'fp8'"),
        ({"metrics": object()}, ValueError, "pass validation="),
        ({"seed": -1}, ValueError, "seed: expected a whole number from 0"),
        ({"teacher": "dense"}, TypeError, "teacher: expected a torch.nn.Module, got str"),
        ({"data": [torch.ones(2, 1, 4, 4)]}, CalibrationError, "no targets and there is no teacher"),
        ({"data": []}, CalibrationError, "it is empty"),
        ({"data": iter(_pairs())}, CalibrationError, "runs dry after one pass"),
        ({"data": [(torch.ones(2, 9), torch.ones(2).long())]}, CalibrationError, "the model fails on it"),
        ({"data": [(torch.ones(2, 1, 4, 4), torch.ones(5).long())]}, CalibrationError, "do not fit outputs"),
        ({"teacher": _net(classes=5)}, CalibrationError, r"teacher's outputs to be \[8, 3\]"),
    ],
)
def test_bad_input_is_refused_before_anything_changes(changes: Any, error: Any, message: str) -> None:
    model = _net()
    before = _digest(model)
    given = {"data": _pairs(), "progress": False, **changes}
    for train in (finetune, retrain):
        with pytest.raises(error, match=message):
            train(model, **given)
        assert _digest(model) == before
        assert model.training


def test_a_model_that_cannot_be_trained_or_reset_is_refused() -> None:
    model = _net()
    with pytest.raises(ValueError, match="shares tensors"):
        finetune(model, _pairs(), teacher=model)
    with pytest.raises(TrainingError, match="nothing to train"):
        finetune(_net().requires_grad_(False), _pairs())
    model.scale = nn.Parameter(torch.ones(3))
    with pytest.raises(FxpruneError, match=r"found none for 'scale' \(1 in all\); retrain takes reset="):
        retrain(model, _pairs(), recipe=SGD)
    retrain(model, _pairs(), recipe=SGD, epochs=1, reset=_reset, progress=False)
    assert float(model.scale.detach().abs().max()) == 0.0
    assert recipe_of("vbp", epochs=2).epochs == 2


BLOCKED = """
import sys
sys.modules["accelerate"] = sys.modules["torchmetrics"] = None
import torch, fxprune
try:
    fxprune.finetune(torch.nn.Linear(2, 2), [torch.ones(1, 2)])
except ImportError as error:
    print(error)
"""


def test_the_extra_is_needed_only_to_train() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "training needs accelerate" in done.stdout
    assert "pip install 'fxprune[train]'" in done.stdout

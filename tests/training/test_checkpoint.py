"""Checkpoints: a resumed run is the uninterrupted one, and what is damaged or foreign is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fxprune._base.errors import PlanError, TrainingError
from fxprune.training import Recipe, finetune, retrain
from fxprune.training.checkpoint import FILE
from tests.support.marks import but_slow
from tests.support.training import ADAMW, SGD, Noisy, digest, net, pairs


@pytest.mark.parametrize("recipe", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize(
    "form", but_slow(["dataset", "loader", "own generator", "workers"], quick=("dataset", "loader"))
)
def test_resumed_equals_uninterrupted(tmp_path: Path, recipe: Recipe, form: str) -> None:
    def data() -> Any:
        source = Noisy()
        if form == "dataset":
            return source
        generator = torch.Generator().manual_seed(torch.seed() % 1000) if form == "own generator" else None
        workers = 1 if form == "workers" else 0
        return DataLoader(source, 8, shuffle=True, generator=generator, num_workers=workers)

    whole, parts = net(), net()
    expected = finetune(whole, data(), recipe=recipe, progress=False)
    source = data()
    if form == "workers":  # theirs are copies of the data: interrupt the model instead
        parts.register_forward_pre_hook(_interrupter(after=2 + 5 + 3))
    else:
        samples = source if isinstance(source, Noisy) else source.dataset
        samples.left = 8 + 36 + 20  # the first look, an epoch, and a part of the second
    with pytest.raises(KeyboardInterrupt):
        finetune(parts, source, recipe=recipe, checkpoint_dir=tmp_path, progress=False)
    assert digest(parts) != digest(whole)
    assert parts.training and parts.norm.training
    assert all(parameter.grad is None for parameter in parts.parameters())
    fresh = net(7)
    torch.manual_seed(99)  # what the process did meanwhile does not matter
    found = finetune(fresh, data(), recipe=recipe, checkpoint_dir=tmp_path, progress=False)
    assert digest(fresh) == digest(whole)
    assert found.resumed_at == 1
    assert [e.loss for e in found.epochs] == [e.loss for e in expected.epochs]
    again = finetune(net(), data(), recipe=recipe, checkpoint_dir=tmp_path, progress=False)
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
    whole, parts, fresh, data = net(), net(1), net(2), Noisy()
    retrain(whole, data, recipe=SGD, progress=False)
    data.left = 8 + 36 + 20
    with pytest.raises(KeyboardInterrupt):
        retrain(parts, data, recipe=SGD, checkpoint_dir=tmp_path, progress=False)
    data.left = None
    assert retrain(fresh, data, recipe=SGD, checkpoint_dir=tmp_path, progress=False).resumed_at == 1
    assert digest(fresh) == digest(whole)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    finetune(net(), Noisy(), recipe=SGD, checkpoint_dir=tmp_path, progress=False)
    return tmp_path


@pytest.mark.parametrize("damage", but_slow(["cut", "flip", "text", "foreign"], quick=("flip",)))
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
    model = net(4)
    before = digest(model)
    with pytest.raises(PlanError, match="resume=False"):
        finetune(model, Noisy(), recipe=SGD, checkpoint_dir=saved, progress=False)
    assert digest(model) == before
    finetune(model, Noisy(), recipe=SGD, epochs=1, checkpoint_dir=saved, resume=False, progress=False)
    again = finetune(net(), Noisy(), recipe=SGD, epochs=1, checkpoint_dir=saved, progress=False)
    assert again.resumed_at == 1


def test_a_checkpoint_of_another_run_or_model_is_refused(saved: Path) -> None:
    def go_on(model: nn.Module = net(), data: Any = None, **changes: Any) -> None:  # noqa: B008
        finetune(model, data or Noisy(), recipe=SGD, checkpoint_dir=saved, progress=False, **changes)

    with pytest.raises(PlanError, match=r"another run: recipe: expected .*0.02"):
        go_on(lr=0.02)
    with pytest.raises(PlanError, match="another run: seed: expected 1, got 0"):
        go_on(seed=1)
    with pytest.raises(PlanError, match="another run: steps: expected 2, got 5"):
        go_on(data=pairs())
    with pytest.raises(PlanError, match=r"another model: head.bias: expected \[5\], got \[3\]"):
        go_on(net(classes=5))
    with pytest.raises(PlanError, match=r"another model: only the model has '1\.bias'"):
        go_on(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))


def test_a_place_that_is_no_directory_is_told_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(TrainingError, match=r"checkpoint_dir=.*expected a directory"):
        finetune(net(), Noisy(), recipe=SGD, checkpoint_dir=tmp_path / "file", progress=False)
    assert (tmp_path / "file").read_text() == "mine"

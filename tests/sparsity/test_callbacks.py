"""Callbacks: the training loops of transformers and Lightning make the schedule's steps, and take them up again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import fxprune
from fxprune._base.errors import PlanError
from fxprune.sparsity import callbacks
from tests.support.schedules import same

STEPS = 8


class Net(nn.Module):
    """Numbers in, a loss and logits out, as a transformers `Trainer` likes them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = (
            nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU()),
            nn.Linear(24, 3),
        )

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.head(self.body(x))
        return logits if labels is None else (nn.functional.cross_entropy(logits, labels), logits)


class Rows(Dataset[dict[str, Tensor]]):
    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.x = torch.randn(64, 6, generator=draw)
        self.y = self.x[:, :3].argmax(1)

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "labels": self.y[index]}


def made() -> tuple[Net, fxprune.Schedule]:
    torch.manual_seed(0)
    model = Net()
    return model, fxprune.Schedule(model, [Rows().x[:16]], 0.5, steps=STEPS, every=2, sparsity="group_lasso")


def trainer(model: nn.Module, schedule: fxprune.Schedule, folder: Path, **given: Any) -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: its extra is models")
    pytest.importorskip("accelerate", reason="accelerate is not installed: a Trainer needs it")
    settings = {"max_steps": STEPS + 2, "save_steps": 5, "learning_rate": 0.01, "report_to": [], "disable_tqdm": True}
    arguments = transformers.TrainingArguments(
        str(folder), use_cpu=True, per_device_train_batch_size=8, **settings | given
    )
    called = callbacks.for_transformers(schedule)
    return transformers.Trainer(model, arguments, train_dataset=Rows(), callbacks=[called])


def test_transformers(tmp_path: Path) -> None:
    model, schedule = made()
    trainer(model, schedule, tmp_path).train()
    assert schedule.count == STEPS + 2 and sum(schedule.zero.values()) > 0
    assert same(schedule.finish(), model, Rows().x) < 1e-5


def test_transformers_with_accumulated_gradients(tmp_path: Path) -> None:
    model, schedule = made()
    trainer(model, schedule, tmp_path, gradient_accumulation_steps=2, max_steps=3).train()
    assert schedule.count == 3


def test_transformers_goes_on(tmp_path: Path) -> None:
    model, schedule = made()
    trainer(model, schedule, tmp_path, max_steps=5).train()
    again, resumed = made()
    trainer(again, resumed, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert resumed.count == STEPS + 2 and sum(resumed.zero.values()) > 0
    (tmp_path / "checkpoint-5" / callbacks.FILE).unlink()
    other, lost = made()
    with pytest.raises(PlanError, match="goes on at step 5"):
        trainer(other, lost, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))


def test_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning", reason="lightning is not installed: its extra is ecosystem")

    class Classifier(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
            return self.net(*batch)[0]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), 1e-2)

    def fit(model: nn.Module, schedule: fxprune.Schedule, steps: int, path: Path | None = None) -> Any:
        loud = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
        quiet = dict.fromkeys(loud, False)
        called = callbacks.for_lightning(schedule)
        run = lightning.Trainer(
            accelerator="cpu",
            max_steps=steps,
            accumulate_grad_batches=2,
            callbacks=[called],
            default_root_dir=tmp_path,
            **quiet,
        )
        rows = Rows()
        run.fit(Classifier(model), DataLoader(TensorDataset(rows.x, rows.y), batch_size=4), ckpt_path=path)
        return run

    model, schedule = made()
    fit(model, schedule, 5).save_checkpoint(tmp_path / "half.ckpt", weights_only=False)
    assert schedule.count == 5
    again, resumed = made()
    fit(again, resumed, STEPS + 2, tmp_path / "half.ckpt")
    assert resumed.count == STEPS + 2 and sum(resumed.zero.values()) > 0
    assert same(resumed.finish(), again, Rows().x) < 1e-5


def test_what_is_no_schedule() -> None:
    for make in (callbacks.for_transformers, callbacks.for_lightning):
        with pytest.raises(TypeError, match=r"expected a fxprune.Schedule, got 3"):
            make(3)  # type: ignore[arg-type]


def test_a_pruned_model_recovers_by_low_rank_updates_that_are_merged(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed: its extra is ecosystem")
    _, schedule = made()
    for _ in range(STEPS):
        schedule.step()
    pruned, rows = schedule.finish(), Rows()
    before = {name: tuple(p.shape) for name, p in pruned.named_parameters()}
    weight = pruned.get_parameter("body.2.weight").detach().clone()
    adapted = peft.get_peft_model(
        pruned, peft.LoraConfig(r=4, target_modules=["body.0", "body.2"], init_lora_weights=True)
    )
    trainable = [p for p in adapted.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.AdamW(trainable, 0.03), list[float]()
    for _ in range(40):
        loss = nn.functional.cross_entropy(adapted(rows.x), rows.y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    with torch.no_grad():
        want = adapted.eval()(rows.x)
        merged = adapted.merge_and_unload()
        assert torch.allclose(merged(rows.x), want, atol=1e-5)
    assert {name: tuple(p.shape) for name, p in merged.named_parameters()} == before
    assert not torch.equal(merged.get_parameter("body.2.weight"), weight)

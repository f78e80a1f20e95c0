"""A LightningModule keeps its class, and with it its training step, its optimizers and its logging."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fxprune

lightning = pytest.importorskip("lightning")


class Classifier(lightning.LightningModule):
    """A small network with what Lightning asks of one."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU())
        self.head = nn.Linear(24, 3)
        self.seen: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.seen.append(loss.item())
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], number: int) -> None:
        self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 12, generator=generator)
    return DataLoader(TensorDataset(inputs, inputs[:, :3].argmax(1)), batch_size=16)


def trainer(folder: Path, **settings: Any) -> Any:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    chosen = {"accelerator": "cpu", "max_epochs": 2} | quiet | settings
    return lightning.Trainer(default_root_dir=folder, **chosen)


@pytest.fixture
def pruned() -> Any:
    torch.manual_seed(0)
    found = fxprune.compile(Classifier().eval(), loader(), 0.6, form="module", progress=False)
    assert type(found) is Classifier and found.body[0].out_features < 32
    return found.train()  # Lightning leaves every module in the mode that it comes in


def test_it_is_trained_by_its_own_step(pruned: Any, tmp_path: Path) -> None:
    shape = pruned.body[0].weight.shape
    doing = trainer(tmp_path)
    doing.fit(pruned, loader(), loader())
    assert len(pruned.seen) == 32 and sum(pruned.seen[-8:]) < 0.8 * sum(pruned.seen[:8])
    assert doing.callback_metrics["accuracy"] > 0.6
    assert pruned.body[0].weight.shape == shape and type(pruned) is Classifier


def test_a_fast_run_of_everything(pruned: Any, tmp_path: Path) -> None:
    trainer(tmp_path, fast_dev_run=True).fit(pruned, loader(), loader())
    assert len(pruned.seen) == 1


def test_a_checkpoint_goes_on(pruned: Any, tmp_path: Path) -> None:
    first = trainer(tmp_path, enable_checkpointing=True, max_epochs=1)
    first.fit(pruned, loader())
    first.save_checkpoint(tmp_path / "one.ckpt")
    after_one = {name: value.clone() for name, value in pruned.state_dict().items()}
    trainer(tmp_path).fit(pruned, loader(), ckpt_path=tmp_path / "one.ckpt")  # the second epoch of two
    assert len(pruned.seen) == 32
    assert not torch.equal(pruned.head.weight, after_one["head.weight"])
    with pytest.raises(RuntimeError, match="size mismatch"):  # its arguments are those of the original
        Classifier.load_from_checkpoint(tmp_path / "one.ckpt")


class Around(lightning.LightningModule):
    """A LightningModule around a network, here one in graph form."""

    def __init__(self, network: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def test_a_graph_is_trained_in_a_module_around_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = fxprune.compile(Classifier().eval(), loader(), 0.6, progress=False)
    assert not hasattr(graph, "training_step")
    inputs, labels = next(iter(loader()))
    before = nn.functional.cross_entropy(graph(inputs), labels).item()
    first = trainer(tmp_path, enable_checkpointing=True, max_epochs=1)
    first.fit(Around(graph.train()), loader())
    first.save_checkpoint(tmp_path / "one.ckpt")
    trainer(tmp_path).fit(Around(graph), loader(), ckpt_path=tmp_path / "one.ckpt")
    assert nn.functional.cross_entropy(graph.eval()(inputs), labels).item() < 0.8 * before


class HandedIn(Around):
    """One whose network is an argument, and in no checkpoint's hyperparameters."""

    def __init__(self, network: Any) -> None:
        super().__init__(network)
        self.save_hyperparameters(ignore=["network"])


@pytest.mark.parametrize("form", ["graph", "module"])
def test_a_checkpoint_is_loaded_into_a_network_that_is_handed_in(form: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 3))
    pruned = fxprune.compile(network, loader(), 0.6, form=form, progress=False)
    other = copy.deepcopy(pruned)
    first = trainer(tmp_path, enable_checkpointing=True, max_epochs=1)
    first.fit(HandedIn(pruned.train()), loader())
    first.save_checkpoint(tmp_path / "one.ckpt")
    inputs, _ = next(iter(loader()))
    assert not torch.equal(other(inputs), pruned.eval()(inputs))
    again = HandedIn.load_from_checkpoint(tmp_path / "one.ckpt", network=other)
    assert torch.equal(again.network.eval()(inputs), pruned(inputs))

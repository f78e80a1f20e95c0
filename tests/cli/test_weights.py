"""Weights from files: under their own names, and refused where they do not fit."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fxprune
from fxprune.cli.models import make
from fxprune.cli.specs import ModelSpec
from fxprune.cli.weights import load_weights
from tests.support.cli import TINY, Bomb, complaint, done, misuse


def test_weights_from_a_file_reach_the_pruned_model(here: Path) -> None:
    import mine  # type: ignore[import-not-found]

    model = mine.net()
    save_file(model.state_dict(), here / "w.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, here / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        found = make(ModelSpec(spec="mine:net", weights=name)).model.state_dict()
        assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())
    done("compile", *TINY, "--weights", "w.pt", "--budget", "1.0", "--out", "out")
    pruned = fxprune.load(here / "out")
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(pruned(x), model.eval()(x))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "net.", "a.b."])
def test_what_wrappers_put_before_names_is_taken_off(here: Path, prefix: str) -> None:
    model = nn.ModuleDict({"module": nn.Linear(2, 2)})
    bare, expected = nn.Linear(2, 2), nn.Linear(2, 2)
    for loaded, inner in ((bare, ""), (model, "module.")):
        save_file({f"{prefix}{inner}{k}": v for k, v in expected.state_dict().items()}, here / "w.safetensors")
        load_weights(loaded, here / "w.safetensors")
        assert torch.equal(loaded.state_dict()[f"{inner}weight"], expected.weight)


def test_a_checkpoint_of_lightning(here: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Task(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.net, self.loss = model, nn.CrossEntropyLoss(weight=torch.ones(3))
            self.save_hyperparameters(ignore=["model"])

    import mine

    model = mine.net()
    model[3] = torch.compile(model[3])  # a part is compiled
    trainer = lightning.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    trainer.strategy.connect(Task(model))
    trainer.save_checkpoint(here / "last.ckpt")
    inside = torch.load(here / "last.ckpt", weights_only=True)["state_dict"]
    assert {"net.0.weight", "net.3._orig_mod.weight", "loss.weight"} < inside.keys()
    found = done("compile", *TINY, "--weights", "last.ckpt", "--budget", "1.0", "--out", "out")
    assert "last.ckpt: the model's weights are those behind net.; left out: 'loss.weight'" in found.stderr
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(fxprune.load(here / "out")(x), model.eval()(x))


def test_a_checkpoint_with_the_model_twice_is_refused(here: Path) -> None:
    state = nn.Linear(2, 2).state_dict()
    save_file({f"{who}.{k}": v.clone() for who in ("student", "ema") for k, v in state.items()}, here / "w.safetensors")
    with pytest.raises(fxprune.FxpruneError, match=r"w.safetensors: .* there 2 times, behind ema\., student\.: save"):
        load_weights(nn.Linear(2, 2), here / "w.safetensors")


def test_weights_that_do_not_fit(here: Path) -> None:
    import mine

    state = mine.net().state_dict()
    save_file({**state, "7.bias": torch.zeros(9)}, here / "shape.safetensors")
    save_file({k: v for k, v in state.items() if k != "3.weight"}, here / "missing.safetensors")
    torch.save({**state, "9.weight": torch.zeros(1)}, here / "more.pt")
    (here / "junk.safetensors").write_bytes(b"junk")
    (here / "bomb.pt").write_bytes(pickle.dumps(Bomb()))
    torch.save([1, 2], here / "list.pt")
    torch.save({f"layer{index}.weight": torch.zeros(1) for index in range(7)}, here / "other.pt")
    for name, words in (
        ("shape.safetensors", "size mismatch for 7.bias"),
        ("missing.safetensors", "missing: '3.weight'"),
        ("more.pt", "unknown to the model: '9.weight'"),
        ("junk.safetensors", "no safetensors file"),
        ("other.pt", "'layer4.weight' and 2 more"),
        ("bomb.pt", "no plain state dict"),
        ("list.pt", "expected a state dict"),
    ):
        argv = ("compile", *TINY, "--weights", name, "--budget", "0.5", "--out", "out")
        assert words in complaint(*argv), name
    assert not (here / "exploded").exists()


def test_weights_that_there_are_not(here: Path) -> None:
    for name in ("nowhere.safetensors", "IMAGENET1K_V9"):
        assert "no such file" in misuse("compile", *TINY, "--weights", name, "--budget", "0.5", "--out", "out")
    assert "IMAGENET1K_V2" in misuse("explain", "torchvision:resnet50", "--weights", "IMAGENET1K_V9")

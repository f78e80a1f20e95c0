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
from tests.support.cli import TINY, Bomb, complaint, done


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


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_what_wrappers_put_before_names_is_taken_off(here: Path, prefix: str) -> None:
    model = nn.ModuleDict({"module": nn.Linear(2, 2)})
    bare, expected = nn.Linear(2, 2), nn.Linear(2, 2)
    for loaded, inner in ((bare, ""), (model, "module.")):
        save_file({f"{prefix}{inner}{k}": v for k, v in expected.state_dict().items()}, here / "w.safetensors")
        load_weights(loaded, here / "w.safetensors")
        assert torch.equal(loaded.state_dict()[f"{inner}weight"], expected.weight)


def test_weights_that_do_not_fit(here: Path) -> None:
    import mine

    state = mine.net().state_dict()
    save_file({**state, "7.bias": torch.zeros(9)}, here / "shape.safetensors")
    save_file({k: v for k, v in state.items() if k != "3.weight"}, here / "missing.safetensors")
    torch.save({**state, "9.weight": torch.zeros(1)}, here / "more.pt")
    (here / "junk.safetensors").write_bytes(b"junk")
    (here / "bomb.pt").write_bytes(pickle.dumps(Bomb()))
    torch.save([1, 2], here / "list.pt")
    for name, words in (
        ("shape.safetensors", "size mismatch for 7.bias"),
        ("missing.safetensors", "'3.weight' is missing"),
        ("more.pt", "'9.weight' is unknown to the model"),
        ("junk.safetensors", "no safetensors file"),
        ("bomb.pt", "no plain state dict"),
        ("list.pt", "expected a state dict"),
        ("nowhere.safetensors", "no such file"),
        ("IMAGENET1K_V9", "no such file"),
    ):
        argv = ("compile", *TINY, "--weights", name, "--budget", "0.5", "--out", "out")
        assert words in complaint(*argv), name
    assert not (here / "exploded").exists()
    assert "IMAGENET1K_V2" in complaint("explain", "torchvision:resnet50", "--weights", "IMAGENET1K_V9")

"""Models by name: what is unknown is named, with the nearest that is known."""

from __future__ import annotations

import sys

import pytest

from tests.support.cli import complaint, misuse


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("torchvision:resnet81", "did you mean resnet18"),
        ("torchvison:resnet18", "did you mean torchvision"),
        ("resnet18", "did you mean torchvision:resnet18"),
        ("resnet", "expected torchvision:NAME"),
        ("timm:vit_tiny_patch16_225", "did you mean vit_tiny_patch16_224"),
        ("transformers:./nowhere", "there is no folder ./nowhere"),
        ("mine:nett", "did you mean net"),
        ("yours:net", "no module named 'yours'"),
    ],
)
def test_an_unknown_model(model: str, words: str) -> None:
    assert words in misuse("compile", model, "--calib", "mine:loader", "--budget", "0.5", "--out", "out")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("mine:batches", "expected a function or class"),
        ("mine:number", "torch.nn.Module, got int"),
        ("mine:fails", "ZeroDivisionError: by zero"),
        ("transformers:nobody/nothing", "expected a folder"),
    ],
)
def test_what_makes_no_model(model: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if model.startswith("transformers"):
        constants = pytest.importorskip("huggingface_hub").constants
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert words in complaint("compile", model, "--calib", "mine:loader", "--budget", "0.5", "--out", "out")


def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install 'fxprune[models]'" in complaint("explain", "timm:resnet18")

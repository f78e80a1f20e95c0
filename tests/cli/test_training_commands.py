"""`fxprune retrain`: as finetune, from fresh weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fxprune
from tests.support.cli import TINY, complaint, done, misuse

pytest.importorskip("accelerate")


def test_weights_are_drawn_anew_and_trained(here: Path) -> None:
    done("compile", *TINY, "--weights", "none", "--budget", "0.6", "--out", "out", "-q")
    argv = ("retrain", "out", "--data", "mine:loader", "--epochs", "1", "--lr", "1e-9", "--json")
    found = done(*argv, "--out", "new")
    assert len(json.loads(found.stdout)["epochs"]) == 1 and "fxprune: epoch 1/1, loss " in found.stderr
    done(*argv, "--out", "other", "--seed", "1")
    names = ("out", "new", "other")
    before, new, other = (fxprune.load(here / name).state_dict()["0.weight"] for name in names)
    assert before.shape == new.shape and not torch.allclose(new, before) and not torch.allclose(new, other)


def test_an_initialisation_of_the_user_s(here: Path) -> None:
    with (here / "mine.py").open("a") as file:
        file.write("\n\ndef ones(model):\n    for p in model.parameters():\n        p.fill_(1)\n")
    done("compile", *TINY, "--weights", "none", "--budget", "0.6", "--out", "out", "-q")
    argv = ("retrain", "out", "--data", "mine:loader", "--epochs", "1", "--lr", "1e-9", "-q")
    assert done(*argv, "--reset", "mine:ones", "--out", "new").output == ""
    weight = fxprune.load(here / "new").state_dict()["0.weight"]
    torch.testing.assert_close(weight, torch.ones_like(weight))


def test_what_it_wants(here: Path) -> None:
    done("compile", *TINY, "--weights", "none", "--budget", "0.6", "--out", "out", "-q")
    argv = ("retrain", "out", "--data", "mine:loader", "--out")
    assert "another directory than the one" in misuse(*argv, "out")
    assert "; did you mean spvr?" in misuse(*argv, "new", "--recipe", "spv")
    assert "mine has no 'nothing'" in misuse(*argv, "new", "--reset", "mine:nothing")
    assert "mine.py/x: it cannot be written" in misuse(*argv, "new", "--checkpoint-dir", "mine.py/x")
    assert "has no targets" in complaint("retrain", "out", "--data", "mine:batches", "--out", "new")

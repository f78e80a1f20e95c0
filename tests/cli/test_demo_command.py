"""`fxprune demo`: its flags, and what is wrong with them before anything is trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import fxprune
from fxprune.contrib import demo
from tests.support.cli import complaint, misuse, run

FLAGS = ["demo", "--seed", "3", "--budget", "0.5", "--method", "l1", "--out", "there"]


def no_training(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("an unusable argument is found before anything is trained")


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch, here: Path) -> Path:
    monkeypatch.setattr(demo, "finetune", no_training)
    return here


def test_an_impossible_budget(untrained: Path) -> None:
    assert "(0, 1]" in misuse("demo", "--budget", "2")


def test_an_unknown_method_lists_the_known_ones(untrained: Path) -> None:
    found = misuse("demo", "--method", "guess")
    assert "guess" in found and "variance" in found


def test_a_directory_with_other_files(untrained: Path) -> None:
    (untrained / "notes.txt").write_text("x")
    assert "notes.txt" in misuse("demo", "--out", str(untrained))


@pytest.mark.parametrize("package", ["sklearn.datasets", "accelerate"])
def test_a_missing_extra(untrained: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert f"the demo needs {package}" in (found := complaint("demo"))
    assert "pip install 'fxprune[demo]'" in found


def test_the_flags_reach_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Differs:
        reloaded = False

    monkeypatch.setattr(demo, "run", lambda **options: seen.update(options) or Differs())
    assert run(*FLAGS).exit_code == 1
    assert seen.pop("say") and seen == {"seed": 3, "budget": fxprune.Budget(params=0.5), "method": "l1", "out": "there"}

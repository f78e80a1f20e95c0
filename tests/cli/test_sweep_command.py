"""`fxprune sweep`: a table of budgets and criteria, as JSON and as a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fxprune
from tests.support.cli import complaint, done, misuse

MODEL = ("sweep", "mine:net", "--weights", "none", "--data", "mine:batches")


def test_budgets_and_methods_are_compared(here: Path) -> None:
    pytest.importorskip("matplotlib")
    argv = (*MODEL, "--budget", "80%", "--budget", "macs=60%", "--method", "l1", "--method", "l2", "--recover", "none")
    found = done(*argv, "--html", "sweep.html")
    lines = found.stdout.splitlines()
    assert lines[0].startswith("fxprune: 4 points, 851 parameters")
    assert [line.split("  ")[0] for line in lines[3:]] == ["l1", "l1", "l2", "l2"]
    assert "<svg" in (here / "sweep.html").read_text(encoding="utf-8")
    assert "fxprune: l2, 60 % MACs: " in found.stderr and "fxprune: score by l1: " in found.stderr
    data = json.loads(done(*argv, "--json", "--quiet").stdout)
    assert [(p["method"], p["budget"].get("params"), p["budget"].get("macs")) for p in data["points"]] == [
        ("l1", 0.8, None),
        ("l1", None, 0.6),
        ("l2", 0.8, None),
        ("l2", None, 0.6),
    ]


def test_a_quality_of_the_user_s(here: Path) -> None:
    with (here / "mine.py").open("a") as file:
        file.write(
            "\n\ndef small(model):\n    print('looking')\n    return -sum(p.numel() for p in model.parameters())\n"
        )
    argv = (*MODEL, "--budget", "0.8", "--evaluate", "mine:small", "--latency", "--json")
    data = json.loads(done(*argv).stdout)
    assert data["quality"] == "value" and data["dense_value"] == -851 and data["points"][0]["latency_ms"] > 0


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), "Missing option '--budget'"),
        (("--budget", "0.5", "--budget", "50"), "got '50'"),
        (("--budget", "0.5", "--method", "l2", "--method", "varience"), "; did you mean variance?"),
        (("--budget", "0.5", "--html", "pictures"), "got a directory"),
        (("--budget", "0.5", "--evaluate", "mine:nothing"), "mine has no 'nothing'"),
        (("--budget", "0.5", "--uniform"), "--form module"),
        (("--budget", "0.5", "--min-keep", "0", "--form", "module"), "min_keep=0"),
    ],
)
def test_a_wrong_word(argv: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_work(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("this is found before any work is done")

    monkeypatch.setattr(fxprune, "sweep", no_work)
    assert words in misuse(*MODEL, *argv)


def test_no_point_with_a_model(here: Path) -> None:
    assert "needs targets" in complaint(*MODEL, "--budget", "0.5", "--method", "taylor")


def test_a_quality_that_fails_is_told_in_a_line(here: Path) -> None:
    with (here / "mine.py").open("a") as file:
        file.write("\n\ndef failing(model):\n    raise ValueError('no data here')\n")
    assert "--evaluate fails on the model" in complaint(*MODEL, "--budget", "0.8", "--evaluate", "mine:failing")

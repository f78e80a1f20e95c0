"""Exit codes, errors and warnings, as the program tells them."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import Result
from torch import nn

import fxprune
from fxprune._base.errors import FxpruneWarning
from fxprune.cli import main
from fxprune.cli.errors import is_the_users, one_line
from fxprune.cli.main import HINT
from fxprune.contrib import demo
from tests.support.cli import TINY, done, run


@pytest.mark.parametrize(
    "argv",
    [
        ["prune"],
        ["demo", "--budget", "half"],
        ["demo", "more"],
        ["compile"],
        ["compile", "mine:net"],
        ["compile", *TINY, "--budget", "0.5"],
        ["compile", *TINY, "--out", "o"],
        ["compile", *TINY, "--budget", "half", "--out", "o"],
        ["compile", *TINY, "--params", "half", "--out", "o"],
        ["compile", *TINY, "--arg", "width", "--out", "o"],
        ["bench", "o", "--batch-sizes", "1,two"],
        ["compile", *TINY, "--mean", "a,b", "--out", "o"],
        ["apply", "plan.json", "--out", "o"],
    ],
)
def test_a_wrong_usage(argv: list[str]) -> None:
    found = run(*argv)
    assert found.exit_code == 2 and found.stderr.startswith("Usage: fxprune") and "Error: " in found.stderr


@pytest.mark.slow
def test_exit_codes_of_the_program_itself(tmp_path: Path) -> None:
    def called(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "fxprune", *argv], capture_output=True, text=True, cwd=tmp_path)

    (tmp_path / "empty").mkdir()
    for name, code, words in (("nowhere", 2, "no such directory"), ("empty", 1, "manifest.json is missing")):
        wrong = called("report", name)
        assert wrong.returncode == code and wrong.stdout == ""
        assert wrong.stderr.startswith(f"fxprune: error: {name}: ") and wrong.stderr.count("\n") == 1
        assert words in wrong.stderr
    right = called("--version")
    assert (right.returncode, right.stdout, right.stderr) == (0, f"fxprune {fxprune.__version__}\n", "")


def test_the_console_script_is_the_program() -> None:
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert 'fxprune = "fxprune.cli:main"' in text and isinstance(main, click.Command)


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Result:
    def fail(**options: Any) -> None:
        raise error

    monkeypatch.setattr(demo, "run", fail)
    return run("demo")


def test_a_system_s_error_and_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    found = failing(monkeypatch, PermissionError(13, "Permission denied", "/there"))
    assert (found.exit_code, found.stderr) == (1, "fxprune: error: Permission denied: /there\n")
    found = failing(monkeypatch, KeyboardInterrupt())
    assert (found.exit_code, found.stderr) == (130, "fxprune: interrupted\n")


def test_a_fault_keeps_its_traceback_and_asks_to_be_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    found = failing(monkeypatch, ZeroDivisionError("by zero"))
    assert isinstance(found.exception, ZeroDivisionError) and found.exception.__notes__ == [HINT]
    with pytest.raises(ValueError) as caught:
        torch.distributions.Normal(torch.tensor(0.0), torch.tensor(-1.0), validate_args=True)
    assert not is_the_users(caught.value)
    with pytest.raises(ValueError) as caught:
        fxprune.compile(nn.Linear(2, 2), [torch.ones(2, 2)], 0.5, round_to=0)
    assert is_the_users(caught.value)


def test_a_message_of_several_lines_becomes_one() -> None:
    assert one_line(ValueError("the plan does not fit:\n  a: expected 3\n  b: expected 4\n")) == (
        "the plan does not fit: a: expected 3; b: expected 4"
    )
    assert one_line(KeyError()) == "KeyError" and one_line(OSError(2, "No such file", "x")) == "No such file: x"


def test_where_an_error_came_from_is_shown_on_demand() -> None:
    found = run("--traceback", "report", "nowhere")
    assert isinstance(found.exception, fxprune.FxpruneError) and found.stderr == ""


def test_other_libraries_warnings_stay_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(**options: Any) -> Any:
        warnings.warn("something old", DeprecationWarning, stacklevel=1)
        return type("Outcome", (), {"reloaded": True})

    monkeypatch.setattr(demo, "run", warn)
    monkeypatch.setattr(sys, "warnoptions", [])
    assert done("demo").stderr == ""


def test_fxprune_s_own_warnings_are_shown_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(**options: Any) -> Any:
        for text in ("first", "second", "first"):
            warnings.warn(text, FxpruneWarning, stacklevel=1)
        return type("Outcome", (), {"reloaded": True})

    monkeypatch.setattr(demo, "run", warn)
    assert done("demo").stderr == "fxprune: warning: first\nfxprune: warning: second\n"
    assert issubclass(fxprune.IgnoredPatternWarning, FxpruneWarning)

"""The command line and the demo that it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fxprune
from fxprune import cli, demo

FLAGS = ["demo", "--seed", "3", "--budget", "0.5", "--method", "l1", "--out", "there"]


def no_training(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("an unusable argument is found before anything is trained")


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(demo, "finetune", no_training)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def complaint(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Returns what a failing command says, which is one line."""
    assert cli.main(["demo", *argv]) == 1
    found = capsys.readouterr().err
    assert found.startswith("fxprune: error: ") and found.count("\n") == 1
    return found


def test_an_impossible_budget(untrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "must lie in (0, 1]" in complaint(capsys, "--budget", "2")


def test_an_unknown_method_lists_the_known_ones(untrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = complaint(capsys, "--method", "guess")
    assert "'guess'" in found and "variance" in found


def test_a_directory_with_other_files(untrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (untrained / "notes.txt").write_text("x")
    assert "notes.txt" in complaint(capsys, "--out", str(untrained))


@pytest.mark.parametrize("package", ["sklearn.datasets", "accelerate"])
def test_a_missing_extra(
    untrained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert f"the demo needs {package}" in (found := complaint(capsys))
    assert "pip install 'fxprune[demo]'" in found


def test_a_system_s_error_and_an_interruption(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(**options: Any) -> None:
        raise PermissionError(13, "Permission denied", "/there")

    def interrupted(**options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", denied)
    assert complaint(capsys) == "fxprune: error: Permission denied: /there\n"
    monkeypatch.setattr(demo, "run", interrupted)
    assert cli.main(["demo"]) == 130


@pytest.mark.parametrize("argv", [[], ["prune"], ["demo", "--budget", "half"], ["demo", "more"]])
def test_a_wrong_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2 and "usage: fxprune" in capsys.readouterr().err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, text in (
        (["--version"], f"fxprune {fxprune.__version__}\n"),
        (["demo", "--help"], "(default: 0.25)"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(argv)
        assert stop.value.code == 0 and text in capsys.readouterr().out


def test_the_flags_reach_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Differs:
        reloaded = False

    monkeypatch.setattr(demo, "run", lambda **options: seen.update(options) or Differs())
    assert cli.main(FLAGS) == 1
    assert seen == {"seed": 3, "budget": 0.5, "method": "l1", "out": "there"}


def test_the_digits_are_real_and_split_by_seed() -> None:
    digits, again, other = (demo.load_digits(seed) for seed in (0, 0, 1))
    assert [len(part[1]) for part in (digits.train, digits.test)] == [1347, 450]
    assert digits.train[0].shape[1:] == (1, 8, 8) and digits.train[0].abs().max() == 1
    assert torch.equal(digits.test[0], again.test[0]) and not torch.equal(digits.test[1], other.test[1])
    assert torch.cat([digits.train[1], digits.test[1]]).unique().tolist() == list(range(10))


def test_the_demo_s_network_is_the_same_for_the_same_seed() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = (demo.make_model(seed=7, width=4).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_demo_with_a_short_training(tmp_path: Path) -> None:
    lines: list[str] = []
    outcome = demo.run(seed=1, epochs=4, out=tmp_path / "digits", say=lines.append)
    before, after = outcome.report.params
    assert outcome.report.verified is True and after <= before / 4
    assert outcome.reloaded and sorted(outcome.latency_ms) == [1, 64]
    dense, _, tuned = outcome.accuracy
    assert dense > 95 and tuned > 93
    printed = "\n".join(lines)
    assert str(outcome.report) in printed and "pruned, fine-tuned" in printed and "outputs equal" in printed
    again = fxprune.load(tmp_path / "digits", demo.make_model())
    assert demo.accuracy(again, demo.load_digits(1).test) == tuned


def test_one_thread_is_given_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), demo.one_thread():
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == before

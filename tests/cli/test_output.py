"""Where words go: results to stdout, everything else to stderr, and files to their places or nowhere."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

import fxprune
from fxprune.cli.output import writing
from tests.support.cli import TINY, complaint, done, listing

ARGV = ("compile", *TINY, "--weights", "none", "--budget", "0.6")
CHATTY = "\n\nprint('a word of the module')\n"


def test_json_is_all_of_stdout_whatever_a_module_prints(here: Path) -> None:
    with (here / "mine.py").open("a") as file:
        file.write(CHATTY)
    found = done(*ARGV, "--out", "out", "--json")
    assert json.loads(found.stdout)["verified"] is True
    assert "a word of the module" in found.stderr


def test_numbers_that_json_has_not_are_null(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done(*ARGV, "--out", "out", "-q")
    monkeypatch.setattr(fxprune.Report, "to_dict", lambda _: {"a": [float("nan")], "b": float("inf"), "c": 1.5})
    assert json.loads(done("report", "out", "--json").stdout) == {"a": [None], "b": None, "c": 1.5}


def test_stages_are_lines_where_there_is_no_terminal(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = done(*ARGV, "--out", "out")
    stages = re.findall(r"^fxprune: (\w+): \d+\.\d s$", found.stderr, re.MULTILINE)
    assert {"capture", "couple", "score", "solve", "rewrite", "verify"} <= set(stages)
    assert done(*ARGV, "--out", "out", "--quiet").output == ""
    assert logging.getLogger("fxprune").handlers == []
    monkeypatch.setenv("RANK", "1")  # another process of torchrun's speaks
    assert not re.search("^fxprune: capture", done(*ARGV, "--out", "out").stderr, re.MULTILINE)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/.out.fxprune-draft/x"), "No space left on device: ö ü"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "No space left on device (os error 28)"),
    ],
)
def test_errors_name_the_place_as_it_was_given(monkeypatch: pytest.MonkeyPatch, error: Exception, words: str) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(fxprune, "save", full)
    said = complaint(*ARGV, "--out", "ö ü", "-q")
    assert words in said and "ö ü" in said and "draft" not in said


def test_an_error_keeps_its_kind() -> None:
    with pytest.raises(PermissionError, match="there"), writing("there"):
        raise PermissionError(errno.EACCES, "no", "/elsewhere")


def test_names_with_spaces_and_letters(here: Path) -> None:
    (here / "pictures").rename(here / "meine schönen Bilder")
    data = ("--calib", "meine schönen Bilder", "--image-size", "8", "--budget", "0.6")
    done("compile", "mine:net", *data, "--out", "die Hälfte", "--plan", "der Plan.json", "-q")
    assert done("report", "die Hälfte", "--html", "ein Blatt.html").stdout == ""
    done("apply", "der Plan.json", "mine:net", "--out", "noch eine", "-q")
    assert {"die Hälfte", "der Plan.json", "ein Blatt.html", "noch eine"} <= set(os.listdir(here))


def test_a_pipe_that_is_closed_early_is_no_error(here: Path) -> None:
    done(*ARGV, "--out", "out", "-q")
    with subprocess.Popen(
        [sys.executable, "-m", "fxprune", "report", "out"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b""


def heeding() -> None:
    """Heeds the signal, which what runs in the background ignores."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or sys.platform == "win32", reason="no such signal")
@pytest.mark.slow
def test_an_interruption_leaves_nothing_behind(here: Path) -> None:
    (here / "slow.py").write_text(
        "import time\nfrom mine import net\n\n\ndef data():\n    print('now')\n    time.sleep(60)\n"
    )
    argv = [sys.executable, "-m", "fxprune", "compile", "slow:net", "--calib", "slow:data", "--budget", "0.6"]
    before = listing(here)
    with subprocess.Popen([*argv, "--out", "out"], stderr=subprocess.PIPE, text=True, preexec_fn=heeding) as child:
        assert child.stderr is not None
        lines = iter(child.stderr.readline, "")
        assert any("now" in line for line in lines)
        child.send_signal(signal.SIGINT)
        assert list(lines)[-1] == "fxprune: interrupted\n"
    assert child.returncode == 130 and listing(here) == before

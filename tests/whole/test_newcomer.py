"""What a newcomer does first, in one go: the commands and snippets of docs/cli.md, one after another."""

from __future__ import annotations

import re
import shlex
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

import fxprune
from fxprune.cli import main
from fxprune.cli.errors import in_options
from fxprune.contrib import demo

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
STEPS = re.findall(
    r"^```(bash|python)\n(.*?)^```$",
    TEXT.partition("<!-- newcomer: begin -->")[2].partition("<!-- newcomer: end -->")[0],
    re.MULTILINE | re.DOTALL,
)

#: Where the test is not the newcomer: no network for trained weights, and little time.
CHANGES = {
    "--weights DEFAULT": "--weights none",
    "--calib pictures": "--calib pictures --image-size 64",
    "--batch-sizes 1,8": "--batch-sizes 1,8 --seconds 0.2 --threads 1",
}


@pytest.mark.slow
def test_the_first_five_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "run", partial(demo.run, epochs=2))
    said: dict[str, str] = {}
    for language, text in STEPS:
        if language == "python":
            exec(compile(text, "docs/cli.md", "exec"), {"__name__": "snippet"})
            continue
        for line in filter(lambda line: line.startswith("fxprune"), text.splitlines()):
            for wanted, given in CHANGES.items():
                line = line.replace(wanted, given)
            found = CliRunner().invoke(main, shlex.split(line)[1:])
            assert found.exit_code == 0, f"{line}\n{found.output}"
            said[shlex.split(line)[1]] = found.stdout
    assert list(said) == ["demo", "compile", "report", "export", "bench"]
    assert "pruned, fine-tuned" in said["demo"] and "outputs equal" in said["demo"]
    report = fxprune.report(fxprune.load(tmp_path / "half"))
    assert report.verified is True and report.params[1] <= 0.5 * report.params[0]
    told = in_options(str(report))
    assert said["report"] == f"{told}\n" and told in said["compile"]
    assert "equal to the model" in said["export"]
    assert "(3, 1000)" in capsys.readouterr().out
    assert {line.split()[1] for line in said["bench"].splitlines() if line.startswith("eager")} == {"1", "8"}

"""What a command prints: the colour of a report's fidelity on a terminal, and nowhere else."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from fxprune.cli.output import show
from fxprune.results.fidelity import Fidelity
from tests.support.reports import make_report


@pytest.mark.parametrize(("agreement", "colour"), [(1.0, 32), (0.9, 33), (0.5, 31)])
def test_the_fidelity_has_a_colour_on_a_terminal(
    agreement: float, colour: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    found = make_report(fidelity=Fidelity(error=0.1, agreement=agreement, samples=9, advice=("recover='sequential'",)))

    @click.command()
    def command() -> None:
        show(found, as_json=False)

    plain, shown = CliRunner().invoke(command), CliRunner().invoke(command, color=True)
    (line,) = (one for one in shown.stdout.splitlines() if "fidelity: " in one)
    assert line.startswith(f"\x1b[{colour}mfidelity: ") and "\x1b" not in plain.stdout
    assert click.unstyle(shown.stdout) == plain.stdout and ("--recover sequential" in plain.stdout) == (
        agreement < 0.95
    )
    assert shown.stdout.count("\x1b") == 2


def test_nothing_is_coloured_where_that_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    found = make_report(fidelity=Fidelity(error=0.1, agreement=0.5))

    @click.command()
    def command() -> None:
        show(found, as_json=False)

    assert "\x1b" not in CliRunner().invoke(command, color=True).stdout

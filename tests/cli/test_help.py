"""Help: examples that run, and a guide whose commands parse."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import get_args

import click
import pytest

import fxprune
from fxprune.cli import main
from fxprune.cli.values import BACKENDS
from fxprune.compiler.options import MethodName, RecoveryOption, UnitKind
from fxprune.runtimes.registry import BackendName
from tests.support.cli import done

COMMANDS = sorted(main.commands)


def test_the_options_of_compile_are_those_of_the_package() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(fxprune.Options)}
    found = {parameter.name: parameter for parameter in main.commands["compile"].params}
    not_here = {"dynamic_shapes", "verify_dtype", "memory_limit", "also", "alone"}
    assert defaults.keys() - found.keys() == {*not_here, "verify", "progress"}  # --no-verify and --quiet
    assert all(found[name].default == default for name, default in defaults.items() if name in found)
    texts = {name: " ".join(str(parameter.help).split()) for name, parameter in found.items() if name in defaults}
    assert "as a share of the mean variance" in texts["ridge"] and "``" not in "".join(texts.values())
    for name, names in (("method", MethodName), ("recover", RecoveryOption), ("units", UnitKind)):
        assert all(each in texts[name] for each in get_args(names))
    assert BACKENDS.replace(" or ", ", ") == ", ".join(get_args(BackendName))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_that_the_program_understands(name: str) -> None:
    command = main.commands[name]
    text = done(name, "--help").stdout
    examples = getattr(command, "examples", ())
    assert examples and all(f"  {line}\n" in text for line in examples)
    for line in examples:
        assert_parses(line.partition(" | ")[0])
    for parameter in command.params:
        assert isinstance(parameter, click.Argument) or getattr(parameter, "help", None), parameter.name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_json_on_demand(name: str) -> None:
    assert any("--json" in parameter.opts for parameter in main.commands[name].params)


def assert_parses(line: str) -> None:
    """Makes sure that a line names a command and only options that it has."""
    program, name, *rest = shlex.split(line)
    assert program == "fxprune"
    main.commands[name].make_context(name, rest)  # raises where it does not parse


def test_the_guide_s_commands_parse_and_name_every_command() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.startswith("fxprune")]
    for line in lines:
        assert_parses(line.partition(" | ")[0].partition(" #")[0])
    assert {shlex.split(line)[1] for line in lines} == set(COMMANDS)


def test_help_and_version() -> None:
    assert done("--version").stdout == f"fxprune {fxprune.__version__}\n"
    text = done("--help").stdout
    assert all(re.search(rf"^  {name} ", text, re.MULTILINE) for name in COMMANDS)
    assert len(main.examples) == 3 and all(f"\n  {line}\n" in text for line in main.examples) and "\\b" not in text
    for line in main.examples:
        assert_parses(line)
    assert "[default: 0.25]" in " ".join(done("demo", "-h").stdout.split())

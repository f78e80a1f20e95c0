"""What is imported when: nothing heavy before it is used, and no torch for help; every public name is found."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import fxprune


def imported_by(code: str, *, before: str = "pass") -> set[str]:
    """Returns what some code imports, in a process of its own, in which other code has run already."""
    code = f"import sys\n{before}\nown = set(sys.modules)\n{code}\nprint(*sys.modules.keys() - own)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


#: public name -> the module that it stands in
PLACES = {
    alias.name: f"fxprune.{node.module}"
    for node in ast.parse(Path(fxprune.__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}


# -- the package --------------------------------------------------------------------------------------------------


def test_the_names_are_those_that_have_a_place() -> None:
    assert fxprune.__all__ == sorted(PLACES) and set(fxprune.__all__) <= set(dir(fxprune))


@pytest.mark.parametrize("name", fxprune.__all__)
def test_a_public_name_is_what_stands_at_its_place(name: str) -> None:
    found: dict[str, object] = {}
    exec(f"from fxprune import {name}", found)
    assert found[name] is getattr(importlib.import_module(PLACES[name]), name)


def test_another_name_is_an_error_that_says_so() -> None:
    with pytest.raises(AttributeError, match=r"fxprune.* attribute .*prune"):
        fxprune.prune  # noqa: B018
    with pytest.raises(ImportError, match="prune"):
        exec("from fxprune import prune")


def test_the_package_alone_imports_no_torch() -> None:
    found = imported_by("import fxprune; fxprune.__version__; fxprune.PlanError")
    assert "torch" not in found and "numpy" not in found


def test_going_through_all_modules_imports_nothing() -> None:
    # inspect.getmodule does so; the modules under their old names are to stay asleep
    found = imported_by("import fxprune\nfor m in list(sys.modules.values()): hasattr(m, '__file__')")
    assert "fxprune.report" in found and "torch" not in found


@pytest.mark.slow
def test_all_public_names_import_little_that_torch_does_not() -> None:
    ours = imported_by("import fxprune\nfor name in fxprune.__all__: getattr(fxprune, name)", before="import torch")
    assert set(PLACES.values()) <= ours
    libraries = {name for name in ours if name.partition(".")[0] not in sys.stdlib_module_names}
    libraries = {name for name in libraries if not name.startswith(("fxprune", "numpy."))}
    assert libraries <= {"lazy_loader", "safetensors", "safetensors._safetensors_rust", "safetensors.torch"}


@pytest.mark.slow
def test_whoever_looks_a_rule_up_finds_it() -> None:
    imported_by("import torch\nfrom fxprune.ops.registry import rule_of\nassert rule_of(torch.ops.aten.conv2d.default)")


REGISTER = """
def taken(register, *what):
    try:
        register(*what)
    except fxprune.FxpruneError as error:
        return "already" in str(error)

assert taken(fxprune.register_rule, "relu.default", fxprune.Rule(couple=print))
assert taken(fxprune.register_scorer, "l1", object)
assert taken(fxprune.register_recovery, "covariance", object)
"""


def test_own_names_are_taken_before_anybody_looks_one_up() -> None:
    imported_by(REGISTER, before="import fxprune")


# -- the command line ---------------------------------------------------------------------------------------------

RUN = """
from click.testing import CliRunner
from fxprune.cli import main

def run(*argv, **settings):
    found = CliRunner().invoke(main, argv, prog_name="fxprune", **settings)
    assert found.exit_code == 0 and found.output, (argv, found)
    return found.output
"""


def test_help_and_version_import_no_torch() -> None:
    found = imported_by(f"{RUN}\nrun('--help'), run('--version')\nfor name in main.commands: run(name, '--help')")
    assert "click" in found and "torch" not in found and "numpy" not in found


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("fxprune re", "retrain"),
        ("fxprune compile --bud", "--budget"),
        ("fxprune compile net --lab", "--labels"),
        ("fxprune sweep net --form mod", "module"),
        ("fxprune report half", "file"),  # a place: the shell completes it
        ("fxprune compile net --out half", "file"),
        ("fxprune finetune out --data pic", "file"),
    ],
)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_imports_no_torch(shell: str, words: str, expected: str) -> None:
    last = words.rpartition(" ")[2]
    place = {"COMP_WORDS": words, "COMP_CWORD": last if shell == "fish" else str(words.count(" "))}
    env = {**place, "_FXPRUNE_COMPLETE": f"{shell}_complete"}
    found = imported_by(f"{RUN}\nassert {expected!r} in run(env={env!r})")
    assert "torch" not in found

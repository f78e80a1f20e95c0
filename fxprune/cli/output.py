"""What a command says and writes: warnings and progress on stderr, results on stdout, and places that can be written."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import click

from fxprune.cli.errors import InputError, in_options

#: What a report's fidelity is shown in on a terminal; the word stands there as well.
_COLOURS = {"good": "green", "fair": "yellow", "poor": "red"}


def warn(text: str) -> None:
    """Prints a warning, one line."""
    click.echo(f"fxprune: warning: {in_options(text)}", err=True)


def tell(text: str, quiet: bool) -> None:
    """Prints a line about what is going on, unless it is to be quiet."""
    if not quiet:
        click.echo(f"fxprune: {text}", err=True)


def show(found: Any, as_json: bool, quiet: bool = False, ending: str = "") -> None:
    """Prints a result, as JSON or else as text with an ending, unless it is to be quiet."""
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1))
    elif not quiet:
        text, plain = in_options(f"{found}{ending}"), bool(os.environ.get("NO_COLOR"))
        click.echo(_painted(text, getattr(found, "fidelity", None)), color=False if plain else None)


def _painted(text: str, fidelity: Any) -> str:
    """Returns a text with the line of a report's fidelity in its colour, which is lost where no terminal shows it."""
    colour = None if fidelity is None else _COLOURS.get(fidelity.level)
    if colour is None:
        return text
    lines = text.splitlines()
    return "\n".join(click.style(x, fg=colour) if x.startswith(f"fidelity: {fidelity.level}: ") else x for x in lines)


def check_directory(out: str | os.PathLike[str]) -> None:
    """Makes sure, before any work is done, that ``fxprune.save`` may write to a directory.

    Raises:
        PlanError: it holds something other than an artifact.
        OSError: it cannot be written.
    """
    from fxprune.storage.manifest import check_target

    check_target(out)
    _check_writable(Path(out).resolve().parent)


def check_file(path: str | os.PathLike[str]) -> None:
    """Makes sure, before any work is done, that a file can be written.

    Raises:
        InputError: it is a directory.
        OSError: it cannot be written.
    """
    if Path(path).is_dir():
        raise InputError(f"{path}: expected the name of a file to write, got a directory")
    _check_writable(Path(path).resolve().parent)


def _check_writable(folder: Path) -> None:
    """Tries it, since permissions alone do not tell; nothing stays behind."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    with tempfile.TemporaryDirectory(dir=there, prefix=".fxprune."):
        pass

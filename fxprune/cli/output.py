"""What a command says and writes: results on stdout, all else on stderr, and places that can be written."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import click
from safetensors import SafetensorError

from fxprune._base.clocks import LOG
from fxprune._base.files import readable, unwritable
from fxprune.cli.errors import OptionError, about_options, in_options, one_line
from fxprune.cli.processes import is_first

_STDOUT = "fxprune.stdout"


# -- lines ----------------------------------------------------------------------------------------------------------

#: What a report's fidelity is shown in on a terminal; the word stands there as well.
_COLOURS = {"good": "green", "fair": "yellow", "poor": "red"}


def warn(text: str) -> None:
    """Prints a warning, one line."""
    _say(f"warning: {in_options(text)}")


def tell(text: str, quiet: bool) -> None:
    """Prints a line about what is going on, unless it is to be quiet."""
    if not quiet:
        _say(text)


def _say(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # that nobody reads is no reason to stop
        click.echo(f"fxprune: {text}", err=True)


class _Lines(logging.Handler):
    """Prints what the package logs, a line each."""

    def emit(self, record: logging.LogRecord) -> None:
        _say(record.getMessage())


@contextlib.contextmanager
def stages_told(quiet: bool) -> Iterator[None]:
    """Prints a line with the time of every stage meanwhile, where there is no terminal for progress bars."""
    if quiet or sys.stderr.isatty() or not is_first():
        yield
        return
    handler, level = _Lines(), LOG.level
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOG.setLevel(level)
        LOG.removeHandler(handler)


# -- results --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def results_apart(context: click.Context) -> Iterator[None]:
    """Keeps stdout for results meanwhile: whatever else prints there, a module of the user's say, prints on stderr."""
    context.meta[_STDOUT] = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        yield


def put(text: str, color: bool | None = None) -> None:
    """Prints a result, or a part of it, on stdout; in colours on a terminal, unless it is told otherwise."""
    out: TextIO | None = click.get_current_context().meta.get(_STDOUT)
    click.echo(text, file=out, color=color)


def show(found: Any, as_json: bool, quiet: bool = False, ending: str = "") -> None:
    """Prints a result, as JSON or else as text with an ending, unless it is to be quiet."""
    if as_json:
        put(json.dumps(_finite(found if isinstance(found, Mapping) else found.to_dict()), indent=1))
    elif not quiet:
        text, plain = in_options(f"{found}{ending}"), bool(os.environ.get("NO_COLOR"))
        put(_painted(text, getattr(found, "fidelity", None)), color=False if plain else None)


def _painted(text: str, fidelity: Any) -> str:
    """Returns a text with the line of a report's fidelity in its colour, which is lost where no terminal shows it."""
    colour = None if fidelity is None else _COLOURS.get(fidelity.level)
    if colour is None:
        return text
    lines = text.splitlines()
    return "\n".join(click.style(x, fg=colour) if x.startswith(f"fidelity: {fidelity.level}: ") else x for x in lines)


def _finite(data: Any) -> Any:
    """Returns JSON data in which None stands for numbers that are not finite: JSON has none."""
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


# -- places ---------------------------------------------------------------------------------------------------------


def check_directory(out: str | os.PathLike[str]) -> None:
    """Makes sure, before any work is done, that ``fxprune.save`` may write to a directory.

    Raises:
        OptionError: it holds something other than an artifact, or cannot be written.
    """
    from fxprune.storage.manifest import check_target

    with about_options():
        check_target(out)
    _check_writable(out)


def check_saved(directory: str) -> None:
    """Makes sure, before any work is done, that there is such a directory of a saved model.

    Raises:
        OptionError: there is none.
    """
    if not readable(Path(directory)).is_dir():
        what = "got a file" if Path(directory).exists() else "there is no such directory"
        raise OptionError(f"{directory}: expected a directory that `fxprune compile` wrote; {what}")


def check_file(path: str | os.PathLike[str]) -> None:
    """Makes sure, before any work is done, that a file can be written.

    Raises:
        OptionError: it is a directory, or cannot be written.
    """
    if Path(path).is_dir():
        raise OptionError(f"{path}: expected the name of a file to write, got a directory")
    _check_writable(path)


def check_folder(path: str | os.PathLike[str]) -> None:
    """Makes sure, before any work is done, that files can be put into a directory, which need not be there yet.

    Raises:
        OptionError: it is a file, or cannot be written.
    """
    _check_writable(Path(path) / "file", path)


def _check_writable(path: str | os.PathLike[str], name: str | os.PathLike[str] | None = None) -> None:
    if why := unwritable(Path(path).resolve().parent):
        raise OptionError(f"{name or path}: it cannot be written: {why}")


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Has what goes wrong while a file or directory is written name it as the user did, not a draft of it.

    Raises:
        OSError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
    except SafetensorError as error:  # it tells of a full disk in a text of its own
        raise OSError(errno.EIO, one_line(error), str(path)) from error

"""What the command line says to a wrong input: one line that says what to do."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from fxprune._base.errors import FxpruneError, FxpruneWarning


class InputError(FxpruneError, ValueError):
    """Something on the command line, or a file that it names, is unusable."""


class OptionError(InputError):
    """A word on the command line is wrong, which is found before a model is made; exit code 2."""


#: What messages tell to pass in Python -> how a command takes it, if it does.
_SPELLINGS = {
    "dynamic_batch=False": "--fixed-batch",
    "dynamic_shapes=": "dynamic_shapes= (in Python)",
    "give an instance of the original architecture, fxprune.load(directory, model)": "name the original architecture with --model",
    "form='module'": "--form module",
    "form='graph'": "--form graph",
    "uniform=True": "--uniform",
    "recover='sequential'": "--recover sequential",
    "recover='reconstruct'": "--recover reconstruct",
    "method='variance'": "--method variance",
    "holdout=0.1": "--holdout 0.1",
    "retrain takes reset=,": "retrain takes --reset package.module:f,",
    "remote_code=True": "--remote-code",
}


def in_options(text: str) -> str:
    """Returns a text with the options of the command line in place of Python's."""
    for written, option in _SPELLINGS.items():
        text = text.replace(written, option)
    return text


def one_line(error: BaseException) -> str:
    """Returns an error's message on one line; a system's error with its reason first, then its file."""
    if isinstance(error, OSError) and error.strerror:
        name = "" if error.filename is None else f": {error.filename}"
        return " ".join(f"{error.strerror}{name}".split())
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    joined = in_options("".join(f"{line} " if line[-1] in ".:;," else f"{line}; " for line in lines))
    return joined.removesuffix("; ").strip() or type(error).__name__


@contextmanager
def refused(
    what: str, way: str = "", kind: type[Exception] | tuple[type[Exception], ...] = Exception
) -> Iterator[None]:
    """Raises what goes wrong inside as an error that says what is unusable, why, and what to do; our own pass."""
    try:
        yield
    except (FxpruneError, PermissionError):  # the system says that better
        raise
    except kind as error:
        raise InputError(f"{what} ({one_line(error)[:200]}){way}") from error


def suggestion(name: str, known: Iterable[str]) -> str:
    """Returns ``"; did you mean a, b?"`` with the known names that are close, or ``""``."""
    lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)
    close = close or [each for each in lower if len(name) > 2 and each.startswith(name.lower())][:3]
    return f"; did you mean {', '.join(lower[each] for each in close)}?" if close else ""


def check_known(name: str, known: Iterable[str], complaint: str, kind: type[InputError] = OptionError) -> None:
    """Makes sure that a name is among those that are known.

    Raises:
        InputError: it is not; the complaint, with the names that are close.
    """
    names = list(known)
    if name not in names:
        raise kind(complaint + suggestion(name, names))


def check_word(option: str, word: str, known: Iterable[str]) -> None:
    """Makes sure that an option's word is among those that are known.

    Raises:
        OptionError: it is not; all of them, and those that are close.
    """
    names = list(known)
    check_known(word, names, f"{option} {word}: expected one of {', '.join(names)}")


@contextmanager
def about_options() -> Iterator[None]:
    """Raises what the package says to a wrong value as an `OptionError`."""
    try:
        yield
    except OptionError:
        raise
    except (FxpruneError, ValueError, TypeError) as error:
        if not is_the_users(error):
            raise
        raise OptionError(str(error)) from error


def is_the_users(error: Exception) -> bool:
    """Returns whether an error is for the user to mend: a system's, or raised by fxprune on purpose.

    A ValueError, TypeError or ImportError counts where fxprune itself raised it; the same from within torch
    is a fault that keeps its traceback.
    """
    if isinstance(error, (FxpruneError, FxpruneWarning, OSError)):
        return True
    *_, origin = "", *(str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__))
    return isinstance(error, (ValueError, TypeError, ImportError)) and origin.partition(".")[0] == "fxprune"

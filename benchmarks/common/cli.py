"""The options that all benchmark scripts share."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from . import zoo
from .data import MissingDataError
from .results import QUICK

SKIPPED = 77  # the exit code that other test drivers know for "could not run here"
OURS = ("fxprune", "common", "tests", "benchmarks")


def parser(title: str, models: list[str] | None = None) -> argparse.ArgumentParser:
    """Returns a parser with ``--quick``, ``--seed``, ``--threads`` and, given defaults for it, ``--models``."""
    made = argparse.ArgumentParser(description=title)
    if models is not None:
        made.add_argument("--models", nargs="+", help="names from the list in common/zoo.py")
        made.set_defaults(usual=models)
    made.add_argument(
        "--quick", action="store_true", help="seconds of work, to see that it runs; recorded under NAME-quick"
    )
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--threads", type=int, default=2, help="threads that torch uses")
    return made


def resumable(made: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds ``--rows``, the file of a `common.kept.Kept`."""
    made.add_argument("--rows", type=Path, help="keep rows there as they come, and go on after those that are there")
    return made


def begin(made: argparse.ArgumentParser) -> argparse.Namespace:
    """Parses the command line, sets threads and seed, and silences other libraries' chatter."""
    options = made.parse_args()
    if options.quick and getattr(options, "rows", None):
        made.error("--rows keeps the rows of full runs: leave out --quick, or --rows")
    if "usual" in options and options.models is None:
        options.models = [zoo.QUICK.name] if options.quick else options.usual
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    warnings.filterwarnings("ignore", module=r"(torch|transformers|torchvision)\.")
    for name in ("transformers", "torch.fx.experimental.symbolic_shapes", "torch_pruning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return options


def name_of(base: str, options: argparse.Namespace) -> str:
    """Returns the name of the record; a quick run never overwrites the full one."""
    return f"{base}{QUICK}" if options.quick else base


def needs(*packages: str) -> None:
    """Makes sure that packages are there, before any work is done.

    Raises:
        ModuleNotFoundError: one is not installed.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def guarded(main: Callable[[], None]) -> None:
    """Runs a script; where data or a package are absent it says so in one line, and ends with `SKIPPED`."""
    try:
        main()
    except MissingDataError as error:
        print(error)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in OURS:
            raise
        print(f"skipped: {package} is not installed; pip install -e '.[bench]' brings it")
    else:
        return
    sys.exit(SKIPPED)

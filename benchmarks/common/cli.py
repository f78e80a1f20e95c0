"""The options that all benchmark scripts share."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path

import torch

from .data import MissingDataError


def parser(title: str, models: list[str] | None = None) -> argparse.ArgumentParser:
    """Returns a parser with ``--quick``, ``--seed``, ``--threads`` and, given defaults for it, ``--models``."""
    made = argparse.ArgumentParser(description=title)
    if models is not None:
        made.add_argument("--models", nargs="+", default=models, help="names from the list in common/zoo.py")
    made.add_argument("--quick", action="store_true", help="a fraction of the work; recorded under NAME-quick")
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
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    warnings.filterwarnings("ignore", module=r"(torch|transformers|torchvision)\.")
    for name in ("transformers", "torch.fx.experimental.symbolic_shapes", "torch_pruning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return options


def name_of(base: str, options: argparse.Namespace) -> str:
    """Returns the name of the record; a quick run never overwrites the full one."""
    return f"{base}-quick" if options.quick else base


def skip(error: MissingDataError) -> None:
    """Ends the script, successfully, because its data are absent; says which."""
    print(error)
    sys.exit(0)

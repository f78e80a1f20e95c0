"""Directories that ``fxprune compile`` wrote: the pruned model, and the dense one beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

import fxprune
from fxprune.artifact import load_report
from fxprune.cli.command import option, together
from fxprune.cli.errors import InputError
from fxprune.cli.models import Made, make, model_options, spec_of
from fxprune.errors import PlanError
from fxprune.plan import check_fits


def dense_options(why: str) -> Callable[[Any], Any]:
    """Returns the options that name the dense model beside a directory; ``why`` ends the help."""
    return together(
        option("--model", metavar="MODEL", section="Model", help=f"The dense model, as for compile: {why}."),
        model_options(),
    )


def dense_of(options: Mapping[str, Any], *, quiet: bool = False) -> Made | None:
    """Returns the dense model that the options name, if any."""
    if options["model"] is not None:
        return make(spec_of(options["model"], options), quiet=quiet)
    for name in ("weights", "args", "config", "head"):
        if options[name]:
            raise InputError(
                f"--{name.rstrip('s') if name == 'args' else name} is about the dense model: give --model too"
            )
    return None


def load_pruned(directory: str, dense: Made | None) -> nn.Module:
    """Returns the pruned model of a directory; the dense one is needed only where there is no graph.

    Raises:
        PlanError: it holds none, a damaged one, or one of another model than the dense one.
    """
    if dense is None:
        return fxprune.load(directory)
    plan = load_report(directory).plan
    assert plan is not None, "a loaded report has its plan"
    check_fits(plan, dense.model)
    try:
        return fxprune.load(directory)
    except PlanError:
        return fxprune.load(directory, dense.model)

"""Directories that ``fxprune compile`` wrote: the pruned model, and the dense one beside it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

import fxprune
from fxprune._base.errors import FxpruneWarning, PlanError
from fxprune.cli.errors import InputError
from fxprune.cli.model_options import spec_of
from fxprune.cli.models import Made, device_named, make
from fxprune.results.plan import check_fits
from fxprune.storage.artifact import load_report


def dense_of(options: Mapping[str, Any], *, quiet: bool = False) -> Made | None:
    """Returns the dense model that the options name, if any."""
    if options["model"] is not None:
        return make(spec_of(options["model"], options), quiet=quiet)
    for name, word in (("weights", "weights"), ("args", "arg"), ("config", "config"), ("head", "head")):
        if options[name]:
            raise InputError(f"--{word} is about the dense model: give --model too")
    return None


def load_pruned(directory: str, dense: Made | None, device: str) -> nn.Module:
    """Returns the pruned model of a directory on a device; the dense one gives what is not in the graph.

    Raises:
        InputError: the device cannot be used.
        PlanError: it holds none, a damaged one, or one of another model than the dense one.
    """
    where = device_named(device)
    if dense is None:
        return fxprune.load(directory).to(where)
    plan = load_report(directory).plan
    assert plan is not None, "a loaded report has its plan"
    check_fits(plan, dense.model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FxpruneWarning)  # what the graph lost, the dense model has
            return fxprune.load(directory).to(where)
    except (PlanError, FxpruneWarning):
        return fxprune.load(directory, dense.model).to(where)

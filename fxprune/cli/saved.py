"""Directories that ``fxprune compile`` wrote: the pruned model, and the dense one beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

import fxprune
from fxprune import untrusted
from fxprune.artifact import MANIFEST, PLAN, REPORT
from fxprune.cli.command import option, together
from fxprune.cli.errors import InputError
from fxprune.cli.models import Made, make, model_options, spec_of
from fxprune.errors import PlanError
from fxprune.plan import Plan, check_fits
from fxprune.report import Report


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
    plan, _ = read_saved(directory)
    if dense is None:
        return fxprune.load(directory)
    check_fits(plan, dense.model)
    try:
        return fxprune.load(directory)
    except PlanError:
        return fxprune.load(directory, dense.model)


def read_saved(directory: str) -> tuple[Plan, Report]:
    """Returns the plan and the report of a directory, without its weights.

    Raises:
        InputError: it holds none.
        PlanError: a damaged one.
    """
    folder = Path(directory)
    if not folder.exists():
        raise InputError(f"{directory}: no such directory; expected one that fxprune compile wrote")
    for name in (MANIFEST, PLAN, REPORT):
        if not (folder / name).is_file():
            raise InputError(
                f"{directory}: {name} is missing: expected a directory that fxprune compile wrote"
            )
    text = (folder / REPORT).read_bytes()
    listed = untrusted.decode((folder / MANIFEST).read_bytes(), str(folder / MANIFEST)).get("files")
    noted = listed.get(REPORT) if isinstance(listed, dict) else None
    if not isinstance(noted, dict) or noted.get("sha256") != hashlib.sha256(text).hexdigest():
        raise PlanError(
            f"{folder / REPORT}: its checksum does not match {MANIFEST}: it was changed after it was written"
        )
    plan = Plan.from_json((folder / PLAN).read_bytes(), what=str(folder / PLAN))
    return plan, Report.from_dict(untrusted.decode(text, REPORT), plan=plan, what=str(folder / REPORT))

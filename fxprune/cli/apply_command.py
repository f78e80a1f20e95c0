"""``fxprune apply``: a plan to a model, or to safetensors files, one at a time."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

import click

import fxprune
from fxprune.cli.command import Command, option
from fxprune.cli.errors import InputError
from fxprune.cli.files import check_directory
from fxprune.cli.model_options import model_options, spec_of
from fxprune.cli.say import tell
from fxprune.storage.manifest import PLAN

_SUFFIX = ".safetensors"


@click.command(
    cls=Command,
    short_help="Apply a plan to a model, or to its weights in files.",
    examples=[
        "fxprune apply half/plan.json torchvision:resnet18 --weights mine.safetensors --out mine-half",
        "fxprune apply plan.json 'checkpoint/*.safetensors' --out checkpoint-half",
    ],
)
@click.argument("plan")
@click.argument("targets", nargs=-1, required=True, metavar="MODEL|FILES")
@option("--out", metavar="DIR", required=True, help="Where the result goes; new or empty.")
@model_options()
@option("-q", "--quiet", is_flag=True, help="Print nothing but errors and warnings.")
def apply(plan: str, targets: tuple[str, ...], out: str, quiet: bool, **options: Any) -> None:
    """Applies PLAN to another instance of its model, or to its weights in files.

    PLAN is a plan.json, or a directory that `fxprune compile` wrote. MODEL is as for `fxprune compile`: its
    weights are sliced, not recovered. FILES are .safetensors files, a quoted pattern, or a folder of them:
    only one is in memory at a time.
    """
    from fxprune.cli.models import make

    found = read_plan(plan)
    check_directory(out)
    pattern = _pattern(targets)
    if pattern is not None:
        done = fxprune.apply(found, pattern, out)
        dropped = f"; left out, as the pruned model has no use for them: {', '.join(done.dropped[:3])}"
        tell(f"wrote {len(done.files)} files to {out}" + (dropped if done.dropped else ""), quiet)
        return
    made = make(spec_of(targets[0], options))
    pruned = fxprune.apply(made.model, found)
    fxprune.save(pruned, out)
    if not quiet:
        click.echo(f"{fxprune.report(pruned)}\n\nsaved: the model in {out}")


def read_plan(path: str) -> fxprune.Plan:
    """Returns the plan of a file, or of a directory that ``fxprune.save`` wrote."""
    file = Path(path) / PLAN if Path(path).is_dir() else Path(path)
    return fxprune.Plan.from_json(file.read_bytes(), what=str(file))


def _pattern(targets: tuple[str, ...]) -> str | None:
    """Returns the files as one pattern; None for a model."""
    first = Path(targets[0])
    if len(targets) == 1:
        if first.is_dir():
            return str(Path(glob.escape(str(first))) / f"*{_SUFFIX}")
        return targets[0] if targets[0].endswith(_SUFFIX) else None
    if not all(target.endswith(_SUFFIX) for target in targets):
        raise InputError(f"expected one model, or {_SUFFIX} files, got {', '.join(targets[:3])}")
    folder = {str(Path(target).parent) for target in targets}
    every = sorted(str(path) for path in first.parent.glob(f"*{_SUFFIX}"))
    if len(folder) > 1 or sorted(str(Path(target)) for target in targets) != every:
        raise InputError(f"expected all {_SUFFIX} files of one folder, or one quoted pattern: 'in/*{_SUFFIX}'")
    return str(Path(glob.escape(str(first.parent))) / f"*{_SUFFIX}")

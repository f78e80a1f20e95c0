"""``fxprune explain``, ``apply`` and ``demo``: what could be pruned, a plan for another instance, and all on real data."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

import click

import fxprune
from fxprune.cli.command import QUIET, Command, option, told
from fxprune.cli.errors import InputError
from fxprune.cli.output import check_directory, show, tell
from fxprune.cli.specs import MODEL, DataSpec, ModelSpec, data_options
from fxprune.storage.manifest import PLAN

_SUFFIX = ".safetensors"


@click.command(
    cls=Command,
    short_help="Say what could be pruned, and what holds the rest.",
    examples=[
        "fxprune explain torchvision:resnet18",
        "fxprune explain torchvision:resnet18 layer1.0.conv1",
        "fxprune explain timm:vit_tiny_patch16_224 --units block --json",
        "fxprune explain package.module:factory --calib random:2x3x32x32 --dot | dot -Tsvg -o groups.svg",
    ],
)
@click.argument("model")
@click.argument("layers", nargs=-1, metavar="[LAYER]...")
@option("--json", "form", flag_value="json", help="As JSON.")
@option("--dot", "form", flag_value="dot", help="As a graph of layers and groups, for Graphviz.")
@option("--units", multiple=True, metavar="KIND", help="block: whole residual branches are units as well.")
@option("--strict", is_flag=True, help="Stop at an op without a rule instead of freezing what it touches.")
@option("--meta", is_flag=True, help="Make the model without memory, however large.")
@MODEL
@data_options("--calib")
def explain(
    model: str, layers: tuple[str, ...], form: str | None, units: tuple[str, ...], strict: bool, **options: Any
) -> None:
    """Says which channels of MODEL must go together, and what can never go and why.

    MODEL is torchvision:NAME, timm:NAME, transformers:NAME_OR_DIR or package.module:factory. With LAYERs
    (names, or patterns such as 'layer1.*') only what concerns these. Nothing is scored; without --calib the
    library's own input size is used.
    """
    from fxprune.cli.data import example_of, load_data
    from fxprune.cli.models import make

    made = make(ModelSpec(**told(ModelSpec, options, spec=model)), quiet=True)
    spec = DataSpec(**told(DataSpec, options))
    data = load_data(spec, made) if spec.source is not None else example_of(made, spec)
    found = fxprune.explain(made.model, data, layers=layers, units=units, strict=strict)
    if form == "dot":
        click.echo(found.to_dot(), nl=False)
    else:
        show(found, as_json=form == "json")


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
@MODEL
@QUIET
def apply(plan: str, targets: tuple[str, ...], out: str, quiet: bool, **options: Any) -> None:
    """Applies PLAN to another instance of its model, or to its weights in files.

    PLAN is a plan.json, or a directory that `fxprune compile` wrote. MODEL is as for `fxprune compile`: its
    weights are sliced, not recovered. FILES are .safetensors files, a quoted pattern, or a folder of them:
    only one is in memory at a time.
    """
    from fxprune.cli.models import make

    file = Path(plan) / PLAN if Path(plan).is_dir() else Path(plan)
    found = fxprune.Plan.from_json(file.read_bytes(), what=str(file))
    check_directory(out)
    if (pattern := _pattern(targets)) is not None:
        done = fxprune.apply(found, pattern, out)
        dropped = f"; left out, as the pruned model has no use for them: {', '.join(done.dropped[:3])}"
        tell(f"wrote {len(done.files)} files to {out}" + (dropped if done.dropped else ""), quiet)
        return
    pruned = fxprune.apply(make(ModelSpec(**told(ModelSpec, options, spec=targets[0]))).model, found)
    fxprune.save(pruned, out)
    show(fxprune.report(pruned), False, quiet, f"\n\nsaved: the model in {out}")


def _pattern(targets: tuple[str, ...]) -> str | None:
    """Returns the files as one pattern; None for a model."""
    first = Path(targets[0])
    if len(targets) == 1:
        if first.is_dir():
            return str(Path(glob.escape(str(first))) / f"*{_SUFFIX}")
        return targets[0] if targets[0].endswith(_SUFFIX) else None
    if not all(target.endswith(_SUFFIX) for target in targets):
        raise InputError(f"expected one model, or {_SUFFIX} files, got {', '.join(targets[:3])}")
    given = sorted(Path(target) for target in targets)
    if given != sorted(first.parent.glob(f"*{_SUFFIX}")):
        raise InputError(f"expected all {_SUFFIX} files of one folder, or one quoted pattern: 'in/*{_SUFFIX}'")
    return str(Path(glob.escape(str(first.parent))) / f"*{_SUFFIX}")


@click.command(
    cls=Command,
    short_help="Train, prune, fine-tune and time a small network on real data.",
    examples=["fxprune demo", "fxprune demo --budget 0.5 --method l1 --out digits"],
)
@option("--seed", type=int, default=0, help="Of everything that is drawn.")
@option("--budget", type=float, default=0.25, help="Share of parameters to keep, in (0, 1].")
@option("--method", default="variance", help="Criterion: variance, magnitude, l1, l2, random, ...")
@option("--out", metavar="DIR", help="Save the fine-tuned model there, for fxprune.load.")
def demo(**options: Any) -> None:
    """Trains a small residual network on scikit-learn's digits, compiles it, prints the report.

    Then the dense, the pruned and the fine-tuned network are compared. Under a minute.
    """
    from fxprune.contrib import demo as demonstration

    if not demonstration.run(**options).reloaded:
        raise InputError("the saved model, loaded again, differs")

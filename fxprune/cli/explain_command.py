"""``fxprune explain``: what could be pruned, and what holds the rest."""

from __future__ import annotations

import json
from typing import Any

import click

import fxprune
from fxprune.cli.command import Command, option
from fxprune.cli.data_options import data_options, data_spec
from fxprune.cli.model_options import model_options, spec_of


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
@model_options()
@data_options("--calib", required=False)
def explain(
    model: str,
    layers: tuple[str, ...],
    form: str | None,
    units: tuple[str, ...],
    strict: bool,
    meta: bool,
    **options: Any,
) -> None:
    """Says which channels of MODEL must go together, and what can never go and why.

    MODEL is torchvision:NAME, timm:NAME, transformers:NAME_OR_DIR or package.module:factory. With LAYERs
    (names, or patterns such as 'layer1.*') only what concerns these. Nothing is scored; without --calib the
    library's own input size is used.
    """
    from fxprune.cli.data import example_of, load_data
    from fxprune.cli.models import make

    made = make(spec_of(model, options, meta=meta), quiet=True)
    spec = data_spec(options, "--calib")
    data = load_data(spec, made) if spec.source is not None else example_of(made, spec.images)
    found = fxprune.explain(made.model, data, layers=layers, units=units, strict=strict)
    if form == "json":
        click.echo(json.dumps(found.to_dict(), indent=1))
    elif form == "dot":
        click.echo(found.to_dot(), nl=False)
    else:
        click.echo(str(found))

"""``fxprune bench``: latency and memory of the dense and the pruned model, in turns."""

from __future__ import annotations

import json
from typing import Any

import click

import fxprune
from fxprune.cli.command import Command, option
from fxprune.cli.model_options import dense_options
from fxprune.cli.say import tell
from fxprune.cli.values import BACKENDS, counts


@click.command(
    cls=Command,
    short_help="Measure latency and memory, dense against pruned.",
    examples=[
        "fxprune bench half --model torchvision:resnet50",
        "fxprune bench half --model torchvision:resnet50 --batch-sizes 1,8,32 --threads 4",
        "fxprune bench half --model torchvision:resnet50 --backend eager --backend compiled --json",
    ],
)
@click.argument("directory", metavar="DIR")
@option("--batch-sizes", type=counts, default="1", metavar="N,N,...", help="Samples a call.")
@option(
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME",
    default=("eager",),
    show_default=True,
    help=f"{BACKENDS}. Repeatable.",
)
@option("--threads", type=click.IntRange(1), help="That an operator may use on the CPU.")
@option("--repeats", type=click.IntRange(1), default=11, help="Samples of each model, at least.")
@option("--seconds", type=click.FloatRange(0), default=2.0, help="For each model and setting, about.")
@dense_options("what the pruned one is compared with")
@option("--json", "as_json", is_flag=True, help="As JSON.")
def bench(
    directory: str,
    batch_sizes: tuple[int, ...],
    backends: tuple[str, ...],
    threads: int | None,
    repeats: int,
    seconds: float,
    as_json: bool,
    **options: Any,
) -> None:
    """Measures the pruned model of DIR, against the dense one where --model says which it is.

    The models take turns, so that a busy machine is unfair to none; medians, their errors, and the ratio to
    the dense model. Shapes are those that the model was compiled with.
    """
    from fxprune.cli.saved import dense_of, load_pruned

    dense = dense_of(options, quiet=True)
    pruned = load_pruned(directory, dense, options["device"])
    if dense is None:
        tell(f"{directory} alone; --model MODEL compares it with the dense model", as_json)
    models = {"pruned": pruned} if dense is None else {"dense": dense.model, "pruned": pruned}
    found = fxprune.bench(
        models, batch_sizes=batch_sizes, backends=backends, threads=threads, repeats=repeats, seconds=seconds
    )
    click.echo(json.dumps(found.to_dict(), indent=1) if as_json else str(found))

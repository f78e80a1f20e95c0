"""``fxprune finetune``: trains a pruned model on, with or without its dense model as teacher."""

from __future__ import annotations

import json
from typing import Any

import click

import fxprune
from fxprune.cli.command import Command, option
from fxprune.cli.data_options import data_options, data_spec
from fxprune.cli.errors import InputError
from fxprune.cli.files import check_directory
from fxprune.cli.model_options import ModelSpec, dense_options
from fxprune.cli.values import pair

_TRAINING = "Training"


@click.command(
    cls=Command,
    short_help="Train a pruned model on.",
    examples=[
        "fxprune finetune half --data new/ --model torchvision:resnet50 --weights DEFAULT --distill --out tuned",
        "fxprune finetune half --data package.module:train_loader --epochs 5 --lr 1e-4 --out tuned",
        "fxprune finetune half --data train.npz --validation test.npz --set label_smoothing=0.1 --out tuned",
    ],
)
@click.argument("directory", metavar="DIR")
@option("--recipe", default="default", section=_TRAINING, help="default, spvr, ippro or vbp.")
@option("--epochs", type=int, section=_TRAINING, help="In place of the recipe's.")
@option("--lr", type=float, section=_TRAINING, help="The highest learning rate, in place of the recipe's.")
@option(
    "--set",
    "changes",
    type=pair,
    metavar="KEY=VALUE",
    multiple=True,
    section=_TRAINING,
    help="Another field of the recipe, e.g. label_smoothing=0.1. Repeatable.",
)
@option("--distill", is_flag=True, section=_TRAINING, help="The dense model (--model, --weights) is the teacher.")
@option("--validation", metavar="DATA", section=_TRAINING, help="Data to measure on, in the forms of --data.")
@option("--checkpoint-dir", metavar="DIR", section=_TRAINING, help="Go on from here after an interruption.")
@option("--seed", type=int, default=0, section=_TRAINING, help="Of everything that is drawn.")
@data_options("--data", required=True, samples=50_000)
@dense_options("it says how images and texts are prepared, and teaches")
@option("--out", metavar="DIR", required=True, help="Where the trained model goes.")
@option("--json", "as_json", is_flag=True, help="Print the history as JSON.")
@option("-q", "--quiet", is_flag=True, help="Print nothing but errors and warnings.")
def finetune(directory: str, out: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Trains the pruned model of DIR on and saves it to another directory.

    Targets are classes from subfolders, `labels` of an .npz file or --label-column; with --distill they may
    be missing.
    """
    from fxprune.cli.data import load_data
    from fxprune.cli.models import Made
    from fxprune.cli.saved import dense_of, load_pruned

    check_directory(out)
    if options["distill"] and (options["model"] is None or options["weights"] is None):
        raise InputError("--distill: expected the dense model as teacher: --model MODEL --weights NAME|FILE")
    dense = dense_of(options, quiet=True)
    pruned = load_pruned(directory, dense, options["device"])
    about = dense or Made(pruned, ModelSpec(spec=directory), "", directory)

    def read(source: str, name: str) -> Any:
        spec = data_spec(options, name, source=source, seed=options["seed"])
        return load_data(spec, about, targets=not options["distill"])

    history = fxprune.finetune(
        pruned,
        read(options["source"], "--data"),
        recipe=options["recipe"],
        epochs=options["epochs"],
        lr=options["lr"],
        teacher=dense.model if options["distill"] and dense is not None else None,
        validation=None if options["validation"] is None else read(options["validation"], "--validation"),
        checkpoint_dir=options["checkpoint_dir"],
        seed=options["seed"],
        progress=not quiet,
        **dict(options["changes"]),
    )
    fxprune.save(pruned, out)
    if as_json:
        click.echo(json.dumps(history.to_dict(), indent=1))
    elif not quiet:
        click.echo(f"{history}\n\nsaved: the model in {out}")

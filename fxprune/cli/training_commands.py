"""``fxprune finetune`` and ``fxprune retrain``: a saved model is trained, from its weights or anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

import fxprune
from fxprune.cli.command import DIRECTORY, JSON, QUIET, Command, option, options_of, together, told
from fxprune.cli.errors import InputError, OptionError, about_options, check_word
from fxprune.cli.output import check_directory, check_folder, check_saved, show, writing
from fxprune.cli.specs import PAIRS, ModelSpec, data_options, dense_options
from fxprune.cli.values import fetch
from fxprune.training import TrainingOptions

_TRAINING = "Training"


def _options(recipe: str) -> Callable[[Any], Any]:
    """Returns the options of both commands; they differ in the recipe that they start from."""
    return together(
        options_of(
            TrainingOptions,
            _TRAINING,
            recipe={"help": "default, spvr, ippro or vbp.", "default": recipe},
            epochs={"type": int},
            lr={"type": float},
        ),
        option(
            "--set",
            "changes",
            section=_TRAINING,
            help="Another field of the recipe, e.g. label_smoothing=0.1. Repeatable.",
            **PAIRS,
        ),
        option(
            "--distill", is_flag=True, section=_TRAINING, help="The dense model (--model, --weights) is the teacher."
        ),
        options_of(
            TrainingOptions,
            _TRAINING,
            validation={"metavar": "DATA", "help": "Data to measure on, in the forms of --data."},
            checkpoint_dir={"metavar": "DIR", "help": "Go on from here after an interruption."},
            seed={"help": "Of everything that is drawn."},
        ),
        data_options("--data", required=True, samples=50_000),
        dense_options("it says how images and texts are prepared, and teaches"),
        option("--out", metavar="DIR", required=True, help="Where the trained model goes."),
        JSON,
        QUIET,
    )


@click.command(
    cls=Command,
    short_help="Train a pruned model on.",
    examples=[
        "fxprune finetune half --data new/ --model torchvision:resnet50 --weights DEFAULT --distill --out tuned",
        "fxprune finetune half --data package.module:train_loader --epochs 5 --lr 1e-4 --out tuned",
        "fxprune finetune half --data train.npz --validation test.npz --set label_smoothing=0.1 --out tuned",
    ],
)
@DIRECTORY
@_options("default")
def finetune(directory: str, out: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Trains the pruned model of DIR on and saves it to another directory.

    Targets are classes from subfolders, `labels` of an .npz file or --label-column; with --distill they may
    be missing.
    """
    _train(fxprune.finetune, directory, out, options | {"quiet": quiet, "as_json": as_json})


@click.command(
    cls=Command,
    short_help="Train a pruned model anew, from fresh weights.",
    examples=[
        "fxprune retrain half --data train/ --validation val/ --model torchvision:resnet50 --out trained",
        "fxprune retrain half --data package.module:train_loader --recipe spvr --epochs 90 --out trained",
    ],
)
@DIRECTORY
@option("--reset", metavar="package.module:f", section=_TRAINING, help="Initialises the model; else its modules do.")
@_options("spvr")
def retrain(directory: str, out: str, as_json: bool, quiet: bool, reset: str | None, **options: Any) -> None:
    """Trains the pruned model of DIR from a fresh initialisation, as SPvR does, and saves it to another directory.

    Its architecture is kept, its weights are not. Data and targets are as for `fxprune finetune`.
    """
    more = {} if reset is None else {"reset": fetch(reset, "--reset")}
    _train(fxprune.retrain, directory, out, options | {"quiet": quiet, "as_json": as_json}, **more)


def _train(train: Callable[..., Any], directory: str, out: str, options: Mapping[str, Any], **more: Any) -> None:
    """Checks what a command was given, trains the model, saves it and shows what happened."""
    from fxprune.cli.data import data_of, load_data
    from fxprune.cli.models import Made, dense_of, load_pruned

    check_saved(directory)
    check_directory(out)
    if Path(out).resolve() == Path(directory).resolve():
        raise OptionError(f"--out {out}: expected another directory than the one whose model is trained")
    if options["checkpoint_dir"] is not None:
        check_folder(options["checkpoint_dir"])
    wanted = told(TrainingOptions, options, progress=not options["quiet"]) | dict(options["changes"])
    _check_recipe(options)
    sources = {"data": data_of(options, name="--data")}
    if options["validation"] is not None:
        sources["validation"] = data_of(options, options["validation"], "--validation")
    dense = dense_of(options)
    pruned = load_pruned(directory, dense, options["device"])
    about = dense or Made(pruned, ModelSpec(spec=directory), "", directory)
    if options["distill"] and dense is not None:
        wanted["teacher"] = dense.model
    for name, spec in sources.items():
        wanted[name] = load_data(spec, about, targets="" if options["distill"] else "needed")
        _check_targets(f"{spec.name} {spec.source}", wanted[name], options)
    history = train(pruned, **wanted, **more)
    with writing(out):
        fxprune.save(pruned, out)
    show(history, options["as_json"], options["quiet"], f"\n\nsaved: the model in {out}")


def _check_recipe(options: Mapping[str, Any]) -> None:
    """Makes sure, before anything is loaded, that the recipe is one, and that there is a teacher if one is asked for.

    Raises:
        OptionError: it is none.
    """
    from fxprune.training.recipe import RECIPES, Recipe, recipe_of

    check_word("--recipe", options["recipe"], RECIPES)
    for name, _ in options["changes"]:
        check_word("--set", name, [entry.name for entry in fields(Recipe)])
    given = {name: options[name] for name in ("epochs", "lr") if options[name] is not None}
    with about_options():
        recipe_of(options["recipe"], **given | dict(options["changes"]))
    if options["distill"] and (options["model"] is None or options["weights"] is None):
        own = "--weights none where it makes its own"
        raise OptionError(f"--distill: expected the dense model as teacher: --model MODEL --weights NAME|FILE; {own}")


def _check_targets(where: str, data: Any, options: Mapping[str, Any]) -> None:
    from fxprune.data.batch import read_batch

    if not options["distill"] and isinstance(data, list) and data and read_batch(data[0], 0)[2] is None:
        ways = "images in subfolders, `labels` of an .npz file, --label-column, a loader of (inputs, targets)"
        raise InputError(f"{where}: it has no targets: expected {ways}, or --distill, which needs none")

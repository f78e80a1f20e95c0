"""``fxprune report``, ``bench``, ``export`` and ``finetune``: what is done with a directory that ``compile`` wrote."""

from __future__ import annotations

from typing import Any

import click

import fxprune
from fxprune.cli.command import QUIET, Command, option, options_of, told
from fxprune.cli.errors import InputError
from fxprune.cli.output import check_directory, check_file, show, tell
from fxprune.cli.specs import PAIRS, DataSpec, ModelSpec, data_options, dense_options
from fxprune.cli.values import BACKENDS, counts
from fxprune.training import TrainingOptions

_TRAINING = "Training"

DIRECTORY = click.argument("directory", metavar="DIR")


@click.command(
    cls=Command,
    short_help="Print what a compilation did.",
    examples=["fxprune report half", "fxprune report half --json", "fxprune report half --html half.html"],
)
@DIRECTORY
@option("--json", "as_json", is_flag=True, help="As JSON.")
@option("--html", metavar="FILE", help="Write it as one self-contained page.")
def report(directory: str, as_json: bool, html: str | None) -> None:
    """Prints the report of DIR, a directory that `fxprune compile` wrote.

    Widths before and after, totals, what is frozen and why, and the certificate that the model equals its
    masked twin.
    """
    from fxprune.storage.artifact import load_report

    found = load_report(directory)
    if html is not None:
        check_file(html)
        fxprune.write_html(found, html)
    show(found, as_json, quiet=html is not None)


@click.command(
    cls=Command,
    short_help="Measure latency and memory, dense against pruned.",
    examples=[
        "fxprune bench half --model torchvision:resnet50",
        "fxprune bench half --model torchvision:resnet50 --batch-sizes 1,8,32 --threads 4",
        "fxprune bench half --model torchvision:resnet50 --backend eager --backend compiled --json",
    ],
)
@DIRECTORY
@option("--batch-sizes", type=counts, default="1", metavar="N,N,...", help="Samples a call.")
@option("--backend", "backends", multiple=True, metavar="NAME", default=("eager",), help=f"{BACKENDS}. Repeatable.")
@option("--threads", type=click.IntRange(1), help="That an operator may use on the CPU.")
@option("--repeats", type=click.IntRange(1), default=11, help="Samples of each model, at least.")
@option("--seconds", type=click.FloatRange(0), default=2.0, help="For each model and setting, about.")
@dense_options("what the pruned one is compared with")
@option("--json", "as_json", is_flag=True, help="As JSON.")
def bench(directory: str, as_json: bool, **options: Any) -> None:
    """Measures the pruned model of DIR, against the dense one where --model says which it is.

    The models take turns, so that a busy machine is unfair to none; medians, their errors, and the ratio to
    the dense model. Shapes are those that the model was compiled with.
    """
    from fxprune.cli.models import dense_of, load_pruned

    dense = dense_of(options)
    pruned = load_pruned(directory, dense, options["device"])
    if dense is None:
        tell(f"{directory} alone; --model MODEL compares it with the dense model", as_json)
    models = {"pruned": pruned} if dense is None else {"dense": dense.model, "pruned": pruned}
    settings = {name: options[name] for name in ("batch_sizes", "backends", "threads", "repeats", "seconds")}
    show(fxprune.bench(models, **settings), as_json)


@click.command(
    cls=Command,
    short_help="Write a pruned model as ONNX or a torch program.",
    examples=["fxprune export half half.onnx", "fxprune export half half.pt2"],
)
@DIRECTORY
@click.argument("file")
@option("--part", metavar="NAME", help="Only this submodule, of a model that cannot be exported whole.")
@option("--fixed-batch", is_flag=True, help="The file takes the batch that the model was compiled with, and no other.")
@option("--opset", type=int, help="The ONNX opset.")
@option("--tolerance", type=float, help="The largest difference over the largest output.  [default: 1e-4]")
@dense_options("its architecture, where the directory alone does not do")
@QUIET
def export(directory: str, file: str, fixed_batch: bool, quiet: bool, **options: Any) -> None:
    """Writes the pruned model of DIR to FILE and compares it.

    FILE ends in .onnx for ONNX, .pt2 for torch.export or .aoti.pt2 for AOTInductor. What is written is
    read again, run, and compared with the model.
    """
    from fxprune.cli.models import dense_of, load_pruned

    check_file(file)
    pruned = load_pruned(directory, dense_of(options), options["device"])
    given = {name: options[name] for name in ("part", "opset", "tolerance") if options[name] is not None}
    show(fxprune.export(pruned, file, dynamic_batch=not fixed_batch, **given), False, quiet)


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
@options_of(
    TrainingOptions,
    _TRAINING,
    recipe={"help": "default, spvr, ippro or vbp."},
    epochs={"type": int},
    lr={"type": float},
)
@option(
    "--set",
    "changes",
    section=_TRAINING,
    help="Another field of the recipe, e.g. label_smoothing=0.1. Repeatable.",
    **PAIRS,
)
@option("--distill", is_flag=True, section=_TRAINING, help="The dense model (--model, --weights) is the teacher.")
@options_of(
    TrainingOptions,
    _TRAINING,
    validation={"metavar": "DATA", "help": "Data to measure on, in the forms of --data."},
    checkpoint_dir={"metavar": "DIR", "help": "Go on from here after an interruption."},
    seed={"help": "Of everything that is drawn."},
)
@data_options("--data", required=True, samples=50_000)
@dense_options("it says how images and texts are prepared, and teaches")
@option("--out", metavar="DIR", required=True, help="Where the trained model goes.")
@option("--json", "as_json", is_flag=True, help="Print the history as JSON.")
@QUIET
def finetune(directory: str, out: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Trains the pruned model of DIR on and saves it to another directory.

    Targets are classes from subfolders, `labels` of an .npz file or --label-column; with --distill they may
    be missing.
    """
    from fxprune.cli.data import load_data
    from fxprune.cli.models import Made, dense_of, load_pruned

    check_directory(out)
    if options["distill"] and (options["model"] is None or options["weights"] is None):
        raise InputError("--distill: expected the dense model as teacher: --model MODEL --weights NAME|FILE")
    dense = dense_of(options)
    pruned = load_pruned(directory, dense, options["device"])
    about = dense or Made(pruned, ModelSpec(spec=directory), "", directory)

    def read(source: str, name: str) -> Any:
        spec = DataSpec(**told(DataSpec, options, source=source, name=name))
        return load_data(spec, about, targets=not options["distill"])

    wanted = told(TrainingOptions, options, progress=not quiet)
    if options["distill"] and dense is not None:
        wanted["teacher"] = dense.model
    data = read(options["source"], "--data")
    if options["validation"] is not None:
        wanted["validation"] = read(options["validation"], "--validation")
    history = fxprune.finetune(pruned, data, **wanted, **dict(options["changes"]))
    fxprune.save(pruned, out)
    show(history, as_json, quiet, f"\n\nsaved: the model in {out}")

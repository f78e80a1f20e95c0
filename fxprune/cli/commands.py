"""The commands but for ``compile``: of a model, of a directory that ``compile`` wrote, and the demo."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any, get_args

import click

import fxprune
from fxprune.cli.command import QUIET, Command, option, options_of, told
from fxprune.cli.errors import InputError
from fxprune.cli.output import check_directory, check_file, show, tell
from fxprune.cli.specs import MODEL, PAIRS, DataSpec, ModelSpec, data_options, dense_options
from fxprune.cli.values import BACKENDS, counts
from fxprune.cli.values import ratios as read_ratios
from fxprune.compiler.options import Form
from fxprune.storage.manifest import PLAN
from fxprune.training import TrainingOptions

_SUFFIX = ".safetensors"
_TRAINING = "Training"

DIRECTORY = click.argument("directory", metavar="DIR")


# -- of a model -----------------------------------------------------------------------------------------------------


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
@option("--json", "output", flag_value="json", help="As JSON.")
@option("--dot", "output", flag_value="dot", help="As a graph of layers and groups, for Graphviz.")
@option(
    "--form", type=click.Choice(get_args(Form)), default="graph", help="module: also what its own class ties and holds."
)
@option("--ratio", "ratios", multiple=True, metavar="PATTERN=SHARE", help="As of compile: what each pattern takes.")
@option("--units", multiple=True, metavar="KIND", help="block: whole residual branches are units as well.")
@option("--strict", is_flag=True, help="Stop at an op without a rule instead of freezing what it touches.")
@option("--meta", is_flag=True, help="Make the model without memory, however large.")
@MODEL
@data_options("--calib")
def explain(
    model: str,
    layers: tuple[str, ...],
    output: str | None,
    form: Form,
    ratios: tuple[str, ...],
    units: tuple[str, ...],
    strict: bool,
    **options: Any,
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
    data = load_data(spec, made, kept=False) if spec.source is not None else example_of(made, spec)
    shares = read_ratios(ratios)
    found = fxprune.explain(made.model, data, layers=layers, ratios=shares, units=units, form=form, strict=strict)
    if output == "dot":
        click.echo(found.to_dot(), nl=False)
    else:
        show(found, as_json=output == "json")


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


# -- of a directory -------------------------------------------------------------------------------------------------


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
    from fxprune.storage.loading import load_report

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
    short_help="Write a pruned model as ONNX, a torch program, a checkpoint of transformers or GGUF.",
    examples=[
        "fxprune export half half.onnx",
        "fxprune export half half.pt2",
        "fxprune export half half-hf/ --model transformers:./lm",
        "fxprune export half half.gguf --model transformers:./lm --tokenizer-from lm.gguf",
    ],
)
@DIRECTORY
@click.argument("file")
@option("--part", metavar="NAME", help="Only this submodule, of a model that cannot be exported whole.")
@option("--fixed-batch", is_flag=True, help="The file takes the batch that the model was compiled with, and no other.")
@option("--opset", type=int, help="The ONNX opset.")
@option("--tolerance", type=float, help="The largest difference over the largest output.  [default: 1e-4]")
@option(
    "--remote-code", is_flag=True, help="A checkpoint may hold a file of code, for widths that no settings can say."
)
@option("--tokenizer-from", metavar="FILE", help="A GGUF file whose tokenizer is copied.")
@dense_options("its architecture, where the directory alone does not do")
@QUIET
def export(directory: str, file: str, fixed_batch: bool, quiet: bool, **options: Any) -> None:
    """Writes the pruned model of DIR to FILE and compares it.

    FILE ends in .onnx for ONNX, .pt2 for torch.export, .aoti.pt2 for AOTInductor, .gguf for llama.cpp; a
    name that ends in / is the directory of a checkpoint that from_pretrained reads. What is written is read
    again, run, and compared with the model.
    """
    from fxprune.cli.models import dense_of, load_pruned

    checkpoint, gguf = file.endswith(("/", os.sep)), file.endswith(".gguf")
    if (options["remote_code"] and not checkpoint) or (options["tokenizer_from"] and not gguf):
        raise click.UsageError("--remote-code goes with a directory (out/), --tokenizer-from with a .gguf file")
    if not checkpoint:
        check_file(file)
    dense = dense_of(options)
    pruned = load_pruned(directory, dense, options["device"])
    if checkpoint or gguf:
        if fxprune.report(pruned).form == "graph":
            if dense is None:
                raise InputError(f"{directory} holds a graph: --model says of which class it is to be written")
            pruned = fxprune.restore(pruned, dense.model)
        if gguf:
            fxprune.to_gguf(pruned, file, tokenizer_from=options["tokenizer_from"])
        else:
            fxprune.to_pretrained(pruned, file, remote_code=options["remote_code"])
        tell(f"wrote {file}, read it again and compared it", quiet)
        return
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
    from fxprune.data.batch import read_batch

    check_directory(out)
    if Path(out).resolve() == Path(directory).resolve():
        raise InputError(f"--out {out}: expected another directory than the one whose model is trained")
    if options["distill"] and (options["model"] is None or options["weights"] is None):
        own = "--weights none where it makes its own"
        raise InputError(f"--distill: expected the dense model as teacher: --model MODEL --weights NAME|FILE; {own}")
    dense = dense_of(options)
    pruned = load_pruned(directory, dense, options["device"])
    about = dense or Made(pruned, ModelSpec(spec=directory), "", directory)

    def read(source: str, name: str) -> Any:
        spec = DataSpec(**told(DataSpec, options, source=source, name=name))
        data = load_data(spec, about, targets=not options["distill"])
        if not options["distill"] and isinstance(data, list) and data and read_batch(data[0], 0)[2] is None:
            ways = "images in subfolders, `labels` of an .npz file, --label-column, a loader of (inputs, targets)"
            raise InputError(f"{name} {source}: it has no targets: expected {ways}, or --distill, which needs none")
        return data

    wanted = told(TrainingOptions, options, progress=not quiet)
    if options["distill"] and dense is not None:
        wanted["teacher"] = dense.model
    data = read(options["source"], "--data")
    if options["validation"] is not None:
        wanted["validation"] = read(options["validation"], "--validation")
    history = fxprune.finetune(pruned, data, **wanted, **dict(options["changes"]))
    fxprune.save(pruned, out)
    show(history, as_json, quiet, f"\n\nsaved: the model in {out}")


# -- the demo -------------------------------------------------------------------------------------------------------


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

"""Commands that look and measure: of a model, of a directory that ``compile`` wrote; plans on other weights, and the demo."""

from __future__ import annotations

import glob
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click

import fxprune
from fxprune.cli.budgets import BUDGET, BUDGET_HELP, Bounds, bounds, budget_of
from fxprune.cli.command import DIRECTORY, JSON, QUIET, Command, option, told
from fxprune.cli.compile_options import scorer_named
from fxprune.cli.errors import InputError, OptionError, check_word
from fxprune.cli.output import check_directory, check_file, check_saved, put, show, tell, writing
from fxprune.cli.specs import MODEL, DataSpec, ModelSpec, data_options, dense_options
from fxprune.cli.values import BACKENDS, Place, Words, counts
from fxprune.cli.values import ratios as read_ratios
from fxprune.compiler.options import Form, UnitKind
from fxprune.storage.manifest import PLAN

_SUFFIX = ".safetensors"


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
@option("--form", type=Words(get_args(Form)), default="graph", help="module: also what its own class ties and holds.")
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
    from fxprune.cli.data import data_of, example_of, load_data
    from fxprune.cli.models import make

    for kind in units:
        check_word("--units", kind, get_args(UnitKind))
    shares = read_ratios(ratios)
    spec = DataSpec(**told(DataSpec, options)) if options["source"] is None else data_of(options)
    made = make(ModelSpec(**told(ModelSpec, options, spec=model)), quiet=True)
    data = load_data(spec, made, kept=False) if spec.source is not None else example_of(made, spec)
    found = fxprune.explain(made.model, data, layers=layers, ratios=shares, units=units, form=form, strict=strict)
    if output == "dot":
        put(found.to_dot().rstrip("\n"))
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
@click.argument("plan", type=Place())
@click.argument("targets", nargs=-1, required=True, metavar="MODEL|FILES", type=Place())
@option("--out", metavar="DIR", required=True, help="Where the result goes; new or empty.")
@MODEL
@JSON
@QUIET
def apply(plan: str, targets: tuple[str, ...], out: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Applies PLAN to another instance of its model, or to its weights in files.

    PLAN is a plan.json, or a directory that `fxprune compile` wrote. MODEL is as for `fxprune compile`: its
    weights are sliced, not recovered. FILES are .safetensors files, a quoted pattern, or a folder of them:
    only one is in memory at a time.
    """
    from fxprune.cli.models import make

    file = Path(plan) / PLAN if Path(plan).is_dir() else Path(plan)
    if not file.is_file():
        raise OptionError(f"{file}: there is no such file; expected a plan.json, or a directory that holds one")
    found = fxprune.Plan.from_json(file.read_bytes(), what=str(file))
    check_directory(out)
    if (pattern := _pattern(targets)) is not None:
        if not glob.glob(pattern):
            raise OptionError(f"{targets[0]}: there are no such files")
        with writing(out):
            done = fxprune.apply(found, pattern, out)
        dropped = f"; left out, as the pruned model has no use for them: {', '.join(done.dropped[:3])}"
        tell(f"wrote {len(done.files)} files to {out}" + (dropped if done.dropped else ""), quiet)
        if as_json:
            files = [str(Path(out) / path.name) for path in done.files]
            show({"files": files, "dropped": done.dropped}, as_json)
        return
    pruned = fxprune.apply(make(ModelSpec(**told(ModelSpec, options, spec=targets[0]))).model, found)
    with writing(out):
        fxprune.save(pruned, out)
    show(fxprune.report(pruned), as_json, quiet, f"\n\nsaved: the model in {out}")


def _pattern(targets: tuple[str, ...]) -> str | None:
    """Returns the files as one pattern; None for a model."""
    first = Path(targets[0])
    if len(targets) == 1:
        if first.is_dir():
            return str(Path(glob.escape(str(first))) / f"*{_SUFFIX}")
        return targets[0] if targets[0].endswith(_SUFFIX) else None
    if not all(target.endswith(_SUFFIX) for target in targets):
        raise OptionError(f"expected one model, or {_SUFFIX} files, got {', '.join(targets[:3])}")
    given = sorted(Path(target) for target in targets)
    if given != sorted(first.parent.glob(f"*{_SUFFIX}")):
        raise OptionError(f"expected all {_SUFFIX} files of one folder, or one quoted pattern: 'in/*{_SUFFIX}'")
    return str(Path(glob.escape(str(first.parent))) / f"*{_SUFFIX}")


# -- of a directory -------------------------------------------------------------------------------------------------


@click.command(
    cls=Command,
    short_help="Print what a compilation did.",
    examples=["fxprune report half", "fxprune report half --json", "fxprune report half --html half.html"],
)
@DIRECTORY
@JSON
@option("--html", metavar="FILE", help="Write it as one self-contained page.")
def report(directory: str, as_json: bool, html: str | None) -> None:
    """Prints the report of DIR, a directory that `fxprune compile` wrote.

    Widths before and after, totals, what is frozen and why, and the certificate that the model equals its
    masked twin.
    """
    from fxprune.storage.loading import load_report

    check_saved(directory)
    if html is not None:
        check_file(html)
    found = load_report(directory)
    if html is not None:
        with writing(html):
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
@JSON
@QUIET
def bench(directory: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Measures the pruned model of DIR, against the dense one where --model says which it is.

    The models take turns, so that a busy machine is unfair to none; medians, their errors, and the speed-up
    over the dense model. Shapes are those that the model was compiled with.
    """
    from fxprune.cli.models import dense_of, introduce, load_pruned
    from fxprune.runtimes.registry import names

    check_saved(directory)
    if options["model"] is not None:
        introduce(options["model"])  # it may register a runtime
    for backend in options["backends"]:
        check_word("--backend", backend, names())
    dense = dense_of(options)
    pruned = load_pruned(directory, dense, options["device"])
    if dense is None:
        tell(f"{directory} alone; --model MODEL compares it with the dense model", quiet or as_json)
    models = {"pruned": pruned} if dense is None else {"dense": dense.model, "pruned": pruned}
    settings = {name: options[name] for name in ("batch_sizes", "backends", "threads", "repeats", "seconds")}
    show(fxprune.bench(models, **settings), as_json)


# -- the demo -------------------------------------------------------------------------------------------------------


@click.command(
    cls=Command,
    short_help="Train, prune, fine-tune and time a small network on real data.",
    examples=["fxprune demo", "fxprune demo --budget 0.5 --method l1 --out digits"],
)
@option("--seed", type=int, default=0, help="Of everything that is drawn.")
@option("--budget", type=bounds, default="0.25", help=BUDGET_HELP, **BUDGET)
@option("--method", default="variance", help="Criterion: variance, magnitude, l1, l2, random, ...")
@option("--out", metavar="DIR", help="Save the fine-tuned model there, for fxprune.load.")
@JSON
@QUIET
def demo(budget: Bounds, method: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Trains a small residual network on scikit-learn's digits, compiles it, prints the report.

    Then the dense, the pruned and the fine-tuned network are compared. Under a minute.
    """
    from fxprune.contrib import demo as demonstration

    scorer_named(method)
    if options["out"] is not None:
        check_directory(options["out"])
    say = partial(tell, quiet=quiet) if as_json or quiet else put
    outcome = demonstration.run(**options, method=method, budget=budget_of(budget), say=say)
    if as_json:
        show(outcome, as_json)
    if not outcome.reloaded:
        raise InputError("the saved model, loaded again, differs")

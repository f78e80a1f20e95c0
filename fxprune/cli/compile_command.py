"""``fxprune compile``: a model, calibration data and a budget in, a smaller model in a directory out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import click

import fxprune
from fxprune._base.files import write_text
from fxprune.cli.command import QUIET, Command, as_given, option, options_of, told
from fxprune.cli.errors import InputError
from fxprune.cli.output import check_directory, check_file, show, tell
from fxprune.cli.specs import MODEL, DataSpec, ModelSpec, data_options
from fxprune.cli.values import BACKENDS, amount, fetch, portion, ratios
from fxprune.compiler.options import (
    AUTO,
    MEASURE,
    Allocation,
    Basis,
    Form,
    MethodName,
    Options,
    RecoveryOption,
    UnitKind,
)

_BUDGET, _METHOD = "Budget", "Method"
_METHODS, _RECOVERIES, _KINDS = (", ".join(get_args(names)) for names in (MethodName, RecoveryOption, UnitKind))
_BOUNDS = ("params", "macs", "latency", "latency_ms")
_NUMBER = {"type": str, "metavar": "N"}
_FUNCTION = {"metavar": "package.module:f"}
_RATIO = (
    "Instead of a budget, the share of units to remove from every group, or from those of the layers that match, e.g. "
    "'layer*.conv1=0.4'. Repeatable."
)
_RECOVER = f"How the rest makes up for what goes: {_RECOVERIES} or none; auto is the method's own choice."
_STREAM = "Read the weights from their safetensors files layer by layer, and write to --out as it goes, however large the model."
_META = "Plan without weights, however large the model: --plan FILE, then `fxprune apply` to its files."


@click.command(
    "compile",
    cls=Command,
    short_help="Compile a model to a budget and save it.",
    examples=[
        "fxprune compile torchvision:resnet50 --weights DEFAULT --calib images/ --budget 0.5 --out half",
        "fxprune compile timm:vit_tiny_patch16_224 --weights DEFAULT --calib images/ --macs 50% --out half",
        "fxprune compile transformers:./my-bert --weights DEFAULT --calib texts.txt --budget 0.7 --out small",
        "fxprune compile package.module:factory --weights w.safetensors --calib data.npz --budget 0.5 --dry-run",
        "fxprune compile transformers:./my-7b --stream --calib texts.txt --budget 0.8 --out small",
    ],
)
@click.argument("model")
@option("--budget", type=portion, metavar="SHARE", section=_BUDGET, help="Share of parameters to keep, in (0, 1].")
@option("--params", type=amount, section=_BUDGET, help="Parameters to keep: 0.5, 50% or 1.2M.")
@option("--macs", type=amount, section=_BUDGET, help="Multiply-accumulates of a sample to keep: 0.5, 50% or 2G.")
@option("--of", multiple=True, metavar="PATTERN", section=_BUDGET, help="Layers that these count alone. Repeatable.")
@option("--latency", type=portion, metavar="SHARE", section=_BUDGET, help="Share of the measured latency to keep.")
@option("--latency-ms", type=float, section=_BUDGET, help="Milliseconds of a call, as measured.")
@option("--latency-batch", type=int, section=_BUDGET, help="Samples of the call that is measured; 1 by default.")
@option("--latency-backend", metavar="NAME", section=_BUDGET, help=f"{BACKENDS}.")
@option("--latency-threads", type=int, section=_BUDGET, help="That an operator may use on the CPU meanwhile.")
@options_of(
    Options,
    _BUDGET,
    ratios={"names": ("--ratio", "ratios"), "multiple": True, "metavar": "[PATTERN=]SHARE", "help": _RATIO},
    round_to=_NUMBER,
    min_keep=_NUMBER,
    ignore={"metavar": "PATTERN"},
    units={"metavar": "KIND", "help": f"Kinds of unit that may go: {_KINDS}. Repeatable."},
)
@options_of(
    Options,
    _METHOD,
    method={"metavar": "NAME", "help": f"Criterion: {_METHODS}."},
    recover={"metavar": "NAME", "help": _RECOVER},
    ridge=_NUMBER,
    holdout={"type": float, "metavar": "SHARE"},
    allow_bias={},
    steps={},
    allocation={"type": click.Choice(get_args(Allocation))},
    basis={"type": click.Choice(get_args(Basis))},
    form={"type": click.Choice(get_args(Form))},
    uniform={},
    loss={**_FUNCTION, "help": "A function of (outputs, targets); else cross-entropy."},
    forward_args=_FUNCTION,
    seed={"help": "Of everything that is drawn."},
    strict={},
    cache_dir={"metavar": "DIR"},
)
@option("--no-verify", is_flag=True, section=_METHOD, help="Leave out the comparison with the masked twin.")
@data_options("--calib", required=True)
@MODEL
@option("--meta", is_flag=True, section="Model", help=_META)
@option("--stream", is_flag=True, section="Model", help=_STREAM)
@option("--out", default=None, metavar="DIR", help="Where the pruned model goes; new, empty, or an earlier one.")
@option("--plan", metavar="FILE", help="Write the plan there as well, as JSON.")
@option("--dry-run", is_flag=True, help="Only print what would go; nothing is written.")
@option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@QUIET
def compile_model(
    model: str,
    out: str | None,
    plan: str | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    stream: bool,
    **options: Any,
) -> None:
    """Compiles MODEL to a budget and saves the smaller model, verified, with its report.

    MODEL is torchvision:NAME, timm:NAME, transformers:NAME_OR_DIR or package.module:factory. What is written
    is a directory for `fxprune report`, `export`, `bench` and `finetune`, and for fxprune.load.
    """
    from fxprune.cli.data import is_loader, load_data
    from fxprune.cli.models import introduce, make
    from fxprune.cli.processes import started_together
    from fxprune.cli.weights import files_of
    from fxprune.results.attached import attach
    from fxprune.results.fidelity import Fidelity
    from fxprune.scoring import scorer_of

    plan_only = dry_run or options["meta"]
    _check_outputs(out, plan, dry_run, options["meta"])
    if stream and (plan_only or out is None):
        raise InputError("--stream writes as it goes: give --out, and leave --meta and --dry-run out")
    wanted = _wanted(options)
    introduce(model)
    if is_loader(options["source"]):
        fetch(options["source"], "--calib")  # what it registers is there to be asked for, as what the model's does
    scorer = scorer_of(options["method"])
    wanted |= {"budget": _budget(options)} | _functions(options)
    spec = ModelSpec(**told(ModelSpec, options, spec=model))
    if stream:
        wanted |= {"weights": files_of(spec), "out": out}
        spec = replace(spec, weights=None, meta=True)
    made = make(spec)
    data = load_data(DataSpec(**told(DataSpec, options)), made, targets="gradients" in scorer.needs)
    tell(f"compiling {made}", quiet or as_json)
    wanted |= {"method": scorer, "recover": _recover(options, scorer, plan_only), "progress": not quiet}
    with started_together() as first:
        pruned = fxprune.compile(made.model, data, verify=not (options["no_verify"] or plan_only), **wanted)
    if not first:
        return
    found = fxprune.report(pruned)
    if plan_only and found.fidelity is not None and not (found.fidelity.why or found.recover):
        found = replace(found, fidelity=Fidelity(why="not measured: nothing is recovered where only a plan is made"))
    found = replace(found, notes=(*found.notes, as_given()))
    attach(pruned, found)
    if plan is not None and not dry_run and found.plan is not None:
        write_text(plan, found.plan.to_json())
    if out is not None and not dry_run and not stream:
        fxprune.save(pruned, out)
    saved = ", ".join(f"{what} in {where}" for what, where in (("the model", out), ("the plan", plan)) if where)
    show(found, as_json, quiet, "\n\n" + ("a dry run: nothing is written" if dry_run else f"saved: {saved}"))


def _check_outputs(out: str | None, plan: str | None, dry_run: bool, meta: bool) -> None:
    """Finds, before any work is done, that nothing can be written at the end."""
    if dry_run:
        return
    if meta and out is not None:
        raise InputError("--meta has no weights to save: leave --out out, and write the plan with --plan FILE")
    if out is None and plan is None:
        raise click.UsageError("Missing option '--out'. (Or --plan FILE, or --dry-run to write nothing.)")
    if out is not None:
        check_directory(out)
    if plan is not None:
        check_file(plan)


def _wanted(options: Any) -> dict[str, Any]:
    """Returns the keyword arguments of ``fxprune.compile`` that need no module of the user's."""
    if not options["ratios"] and all(options[name] is None for name in ("budget", *_BOUNDS)):
        others = ", ".join(f"--{name.replace('_', '-')}" for name in _BOUNDS)
        raise click.UsageError(f"Missing option '--budget'. (Or {others} or --ratio.)")
    if options["budget"] is not None and not 0 < options["budget"] <= 1:
        what = f"--budget {options['budget']:g}: expected a share of parameters in (0, 1], such as 0.5 or 50%"
        raise InputError(f"{what}; for a number of parameters use --params, such as --params 1.2M")
    if options["uniform"] and options["form"] != "module":
        raise click.UsageError("--uniform is about the original's class: give --form module with it")
    wanted = told(Options, {**options, "weights": None}, ratios=ratios(options["ratios"]))
    whole = {"round_to": (AUTO, MEASURE), "min_keep": (AUTO,)}
    numbers = {name: _number(name, options[name], int, words) for name, words in whole.items()}
    return wanted | numbers | {"ridge": _number("ridge", options["ridge"], float, (AUTO,))}


def _functions(options: Any) -> dict[str, Any]:
    given = {name: options[name] for name in ("loss", "forward_args") if options[name] is not None}
    return {name: fetch(reference, f"--{name.replace('_', '-')}") for name, reference in given.items()}


def _budget(options: Any) -> Any:
    own = {"batch_size": "latency_batch", "backend": "latency_backend", "threads": "latency_threads"}
    own |= {name: name for name in _BOUNDS}
    bounds = {name: options[option] for name, option in own.items() if options[option] is not None}
    if options["of"] and options["ratios"]:
        raise InputError("--of says what --budget, --params and --macs count; --ratio takes patterns of its own")
    bounds |= {"of": options["of"]} if options["of"] else {}
    if options["budget"] is None or not bounds:
        return fxprune.Budget(**bounds) if bounds else options["budget"]
    if "params" in bounds:
        raise InputError("--budget is a share of parameters, and so is --params: give one of them")
    return fxprune.Budget(params=options["budget"], **bounds)


def _number(name: str, text: str, kind: type[int] | type[float], words: tuple[str, ...]) -> float | str:
    try:
        return text if text in words else kind(text)
    except ValueError:
        expected = ", ".join(["a whole number" if kind is int else "a number", *words[:-1]])
        raise InputError(f"--{name.replace('_', '-')} {text}: expected {expected} or {words[-1]}") from None


def _recover(options: Any, scorer: Any, plan_only: bool) -> str | None:
    """Returns what ``recover`` is to be: a plan alone needs none, unless it depends on it."""
    chosen = None if options["recover"].lower() == "none" else str(options["recover"])
    own = Options(recover=chosen).resolve(scorer).recover
    return None if plan_only and own != "reinit" and options["steps"] == 1 else chosen

"""``fxprune compile``: a model, calibration data and a budget in, a smaller model in a directory out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

import fxprune
from fxprune._base.files import write_text
from fxprune.cli.budgets import BOUNDS, BUDGET_HELP, Bounds, bounds, budget_of
from fxprune.cli.budgets import BUDGET as BUDGET_SETTINGS
from fxprune.cli.command import JSON, QUIET, Command, as_given, option, options_of, told
from fxprune.cli.compile_options import BUDGET, HOW, KEPT, METHOD, METHODS, check_settings, scorer_named, settings
from fxprune.cli.errors import OptionError
from fxprune.cli.output import check_directory, check_file, show, tell, writing
from fxprune.cli.specs import MODEL, ModelSpec, data_options
from fxprune.cli.values import BACKENDS, amount, portion, ratios
from fxprune.compiler.options import Options

_RATIO = (
    "Instead of a budget, the share of units to remove from every group, or from those of the layers that match, e.g. "
    "'layer*.conv1=0.4'. Repeatable."
)
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
@option("--budget", type=bounds, section=BUDGET, help=BUDGET_HELP, **BUDGET_SETTINGS)
@option("--params", type=amount, section=BUDGET, help="Parameters to keep: 0.5, 50% or 1.2M.")
@option("--macs", type=amount, section=BUDGET, help="Multiply-accumulates of a sample to keep: 0.5, 50% or 2G.")
@option("--of", multiple=True, metavar="PATTERN", section=BUDGET, help="Layers that these count alone. Repeatable.")
@option("--latency", type=portion, metavar="SHARE", section=BUDGET, help="Share of the measured latency to keep.")
@option("--latency-ms", type=float, section=BUDGET, help="Milliseconds of a call, as measured.")
@option("--latency-batch", type=int, section=BUDGET, help="Samples of the call that is measured; 1 by default.")
@option("--latency-backend", metavar="NAME", section=BUDGET, help=f"{BACKENDS}.")
@option("--latency-threads", type=int, section=BUDGET, help="That an operator may use on the CPU meanwhile.")
@options_of(
    Options,
    BUDGET,
    ratios={"names": ("--ratio", "ratios"), "multiple": True, "metavar": "[PATTERN=]SHARE", "help": _RATIO},
)
@KEPT
@options_of(Options, METHOD, method={"metavar": "NAME", "help": f"Criterion: {METHODS}."})
@HOW
@options_of(Options, METHOD, steps={})
@option("--no-verify", is_flag=True, section=METHOD, help="Leave out the comparison with the masked twin.")
@data_options("--calib", required=True)
@MODEL
@option("--meta", is_flag=True, section="Model", help=_META)
@option("--stream", is_flag=True, section="Model", help=_STREAM)
@option("--out", default=None, metavar="DIR", help="Where the pruned model goes; new, empty, or an earlier one.")
@option("--plan", metavar="FILE", help="Write the plan there as well, as JSON.")
@option("--dry-run", is_flag=True, help="Only print what would go; nothing is written.")
@JSON
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
    from fxprune.cli.data import data_of, load_data
    from fxprune.cli.models import introduce, make
    from fxprune.cli.processes import started_together
    from fxprune.cli.weights import files_of
    from fxprune.results.attached import attach
    from fxprune.results.fidelity import Fidelity
    from fxprune.scoring.scorer import wants_targets

    plan_only = dry_run or options["meta"]
    _check_outputs(out, plan, dry_run, options["meta"])
    if stream and (plan_only or out is None):
        raise OptionError("--stream writes as it goes: give --out, and leave --meta and --dry-run out")
    _check_bounds(options)
    introduce(model)
    data_spec = data_of(options)  # a loader's module as well: what these register is there to be asked for
    scorer = scorer_named(options["method"])
    wanted = settings(options, weights=None, ratios=ratios(options["ratios"]), progress=not quiet)
    check_settings(wanted, scorer)
    wanted |= {"budget": _budget(options), "method": scorer}
    spec = ModelSpec(**told(ModelSpec, options, spec=model))
    if stream:
        wanted |= {"weights": files_of(spec), "out": out}
        spec = replace(spec, weights=None, meta=True)
    if plan_only and not _needs_recovery(wanted, scorer):
        wanted["recover"] = None
    made = make(spec)
    data = load_data(data_spec, made, targets=wants_targets(scorer))
    tell(f"compiling {made}", quiet or as_json)
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
        with writing(plan):
            write_text(plan, found.plan.to_json())
    if out is not None and not dry_run and not stream:
        with writing(out):
            fxprune.save(pruned, out)
    saved = ", ".join(f"{what} in {where}" for what, where in (("the model", out), ("the plan", plan)) if where)
    show(found, as_json, quiet, "\n\n" + ("a dry run: nothing is written" if dry_run else f"saved: {saved}"))


def _check_outputs(out: str | None, plan: str | None, dry_run: bool, meta: bool) -> None:
    """Finds, before any work is done, that nothing can be written at the end."""
    if dry_run:
        return
    if meta and out is not None:
        raise OptionError("--meta has no weights to save: leave --out out, and write the plan with --plan FILE")
    if out is None and plan is None:
        raise click.UsageError("Missing option '--out'. (Or --plan FILE, or --dry-run to write nothing.)")
    if out is not None:
        check_directory(out)
    if plan is not None:
        check_file(plan)


def _check_bounds(options: Any) -> None:
    """Makes sure that there is one way to say how much goes."""
    bounded = [f"--{name.replace('_', '-')}" for name in ("budget", *BOUNDS) if options[name] is not None]
    if not bounded and not options["ratios"]:
        others = ", ".join(f"--{name.replace('_', '-')}" for name in BOUNDS)
        raise click.UsageError(f"Missing option '--budget'. (Or {others} or --ratio.)")
    if options["of"] and options["ratios"]:
        raise OptionError("--of says what --budget, --params and --macs count; --ratio takes patterns of its own")
    if bounded and options["ratios"]:
        raise OptionError(f"{bounded[0]} and --ratio: give either a budget, or what goes of each group")


def _budget(options: Any) -> fxprune.Budget | None:
    if options["ratios"]:
        return None
    own = {"batch_size": "latency_batch", "backend": "latency_backend", "threads": "latency_threads"}
    own |= {name: name for name in BOUNDS}
    more = {name: options[option] for name, option in own.items() if options[option] is not None}
    more |= {"of": options["of"]} if options["of"] else {}
    given: Bounds = options["budget"] or {}
    return budget_of(given, **more)


def _needs_recovery(wanted: Any, scorer: Any) -> bool:
    """Returns whether a plan depends on the recovery: a plan alone is made without it otherwise."""
    own = Options(recover=wanted["recover"]).resolve(scorer).recover
    return own == "reinit" or wanted["steps"] > 1

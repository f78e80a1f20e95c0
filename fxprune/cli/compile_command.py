"""``fxprune compile``: a model, calibration data and a budget in, a smaller model in a directory out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import click

import fxprune
from fxprune._base.files import write_text
from fxprune.cli.command import Command, option
from fxprune.cli.data_options import data_options, data_spec
from fxprune.cli.errors import InputError
from fxprune.cli.files import check_directory, check_file
from fxprune.cli.model_options import model_options, spec_of
from fxprune.cli.say import tell
from fxprune.cli.values import BACKENDS, amount, fetch
from fxprune.compiler.options import MethodName, Options, RecoveryOption, UnitKind, described

_BUDGET, _METHOD = "Budget", "Method"

_OPTIONS = Options()


def of_field(field: str, *names: str, section: str = _METHOD, **settings: Any) -> Callable[[Any], Any]:
    """Returns the option for a field of `Options`: with its default, and its text where no other is given."""
    text = re.sub(r"[`\"]", "", described().get(field, ""))
    settings = {"default": getattr(_OPTIONS, field), "help": text[:1].upper() + text[1:], **settings}
    return option(*(names or (f"--{field.replace('_', '-')}",)), section=section, **settings)


def known(names: Any) -> str:
    """Returns the names of a ``Literal`` in a row."""
    return ", ".join(get_args(names))


@click.command(
    "compile",
    cls=Command,
    short_help="Compile a model to a budget and save it.",
    examples=[
        "fxprune compile torchvision:resnet50 --weights DEFAULT --calib images/ --budget 0.5 --out half",
        "fxprune compile timm:vit_tiny_patch16_224 --weights DEFAULT --calib images/ --macs 50% --out half",
        "fxprune compile transformers:./my-bert --weights DEFAULT --calib texts.txt --budget 0.7 --out small",
        "fxprune compile package.module:factory --weights w.safetensors --calib data.npz --budget 0.5 --dry-run",
    ],
)
@click.argument("model")
@option("--budget", type=float, metavar="SHARE", section=_BUDGET, help="Share of parameters to keep, in (0, 1].")
@option("--params", type=amount, section=_BUDGET, help="Parameters to keep: 0.5, 50% or 1.2M.")
@option("--macs", type=amount, section=_BUDGET, help="Multiply-accumulates of a sample to keep: 0.5, 50% or 2G.")
@option("--latency", type=float, metavar="SHARE", section=_BUDGET, help="Share of the measured latency to keep.")
@option("--latency-ms", type=float, section=_BUDGET, help="Milliseconds of a call, as measured.")
@option("--latency-batch", type=int, section=_BUDGET, help="Samples of the call that is measured; 1 by default.")
@option("--latency-backend", metavar="NAME", section=_BUDGET, help=f"{BACKENDS}.")
@option("--latency-threads", type=int, section=_BUDGET, help="That an operator may use on the CPU meanwhile.")
@of_field(
    "ratios",
    "--ratio",
    "ratios",
    multiple=True,
    metavar="[PATTERN=]SHARE",
    section=_BUDGET,
    help="Instead of a budget, the share of units to remove from every group, or from those of the layers "
    "that match, e.g. 'layer*.conv1=0.4'. Repeatable.",
)
@of_field("round_to", type=str, metavar="N", section=_BUDGET)
@of_field("min_keep", type=str, metavar="N", section=_BUDGET)
@of_field("ignore", multiple=True, metavar="PATTERN", section=_BUDGET)
@of_field(
    "units",
    multiple=True,
    metavar="KIND",
    section=_BUDGET,
    help=f"Kinds of unit that may go: {known(UnitKind)}. Repeatable.",
)
@of_field("method", type=str, metavar="NAME", help=f"Criterion: {known(MethodName)}.")
@of_field(
    "recover",
    type=str,
    metavar="NAME",
    help=(f"How the rest makes up for what goes: {known(RecoveryOption)} or none; auto is the method's own choice."),
)
@of_field("ridge", type=float)
@of_field("steps", type=int)
@of_field("loss", metavar="package.module:f", help="A function of (outputs, targets); else cross-entropy.")
@of_field("forward_args", metavar="package.module:f")
@of_field("seed", type=int, help="Of everything that is drawn.")
@of_field("strict", is_flag=True)
@option("--no-verify", is_flag=True, section=_METHOD, help="Leave out the comparison with the masked twin.")
@of_field("cache_dir", metavar="DIR")
@data_options("--calib", required=True)
@model_options()
@option(
    "--meta",
    is_flag=True,
    section="Model",
    help="Plan without weights, however large the model: --plan FILE, then `fxprune apply` to its files.",
)
@option("--out", metavar="DIR", help="Where the pruned model goes; new, empty, or an earlier one.")
@option("--plan", metavar="FILE", help="Write the plan there as well, as JSON.")
@option("--dry-run", is_flag=True, help="Only print what would go; nothing is written.")
@option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@option("-q", "--quiet", is_flag=True, help="Print nothing but errors and warnings.")
def compile_model(
    model: str, out: str | None, plan: str | None, dry_run: bool, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Compiles MODEL to a budget and saves the smaller model, verified, with its report.

    MODEL is torchvision:NAME, timm:NAME, transformers:NAME_OR_DIR or package.module:factory. What is written
    is a directory for `fxprune report`, `export`, `bench` and `finetune`, and for fxprune.load.
    """
    from fxprune.cli.data import load_data
    from fxprune.cli.models import make
    from fxprune.results.attached import attach
    from fxprune.scoring import scorer_of

    meta = options["meta"]
    _check_outputs(out, plan, dry_run, meta)
    scorer = scorer_of(options["method"])
    wanted = _wanted(options)
    made = make(spec_of(model, options, seed=options["seed"], meta=meta))
    data = load_data(data_spec(options, "--calib", seed=options["seed"]), made, targets="gradients" in scorer.needs)
    tell(f"compiling {made}", quiet or as_json)
    recover = _recover(options, scorer, dry_run or meta)
    verify = not (options["no_verify"] or dry_run or meta)
    pruned = fxprune.compile(
        made.model, data, method=scorer, recover=recover, verify=verify, progress=not quiet, **wanted
    )
    found = fxprune.report(pruned)
    made_by = f"fxprune compile {made} --calib {options['source']}"
    found = replace(found, notes=(*found.notes, made_by))
    attach(pruned, found)
    if plan is not None and not dry_run and found.plan is not None:
        write_text(plan, found.plan.to_json())
    if out is not None and not dry_run:
        fxprune.save(pruned, out)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1))
    elif not quiet:
        click.echo(str(found))
        done = [f"{what} in {where}" for what, where in (("the model", out), ("the plan", plan)) if where]
        click.echo("\n" + ("a dry run: nothing is written" if dry_run else f"saved: {', '.join(done)}"))


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


#: option -> field of a Budget
_BOUNDS = {
    "params": "params",
    "macs": "macs",
    "latency": "latency",
    "latency_ms": "latency_ms",
    "latency_batch": "batch_size",
    "latency_backend": "backend",
    "latency_threads": "threads",
}


def _wanted(options: Any) -> dict[str, Any]:
    """Returns the keyword arguments of ``fxprune.compile``, but for those that depend on what is to be written."""
    bounds = {name: options[option] for option, name in _BOUNDS.items() if options[option] is not None}
    if options["budget"] is not None and bounds:
        if "params" in bounds:
            raise InputError("--budget is a share of parameters, and so is --params: give one of them")
        bounds["params"] = options["budget"]
    given = {name: options[name] for name in ("units", "ignore", "ridge", "steps", "strict", "cache_dir", "seed")}
    if bounds:
        given["budget"] = fxprune.Budget(**bounds)
    elif options["budget"] is not None:
        given["budget"] = options["budget"]
    if options["ratios"]:
        given["ratios"] = _ratios(options["ratios"])
    for name in ("round_to", "min_keep"):
        given[name] = _whole(name, options[name])
    for name in ("loss", "forward_args"):
        if options[name] is not None:
            given[name] = fetch(options[name], f"--{name.replace('_', '-')}")
    return given


def _whole(name: str, text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise InputError(f"--{name.replace('_', '-')} {text}: expected a whole number or auto") from None


def _ratios(texts: tuple[str, ...]) -> float | dict[str, float]:
    table: dict[str, float] = {}
    for text in texts:
        pattern, equals, share = text.rpartition("=")
        try:
            table[pattern if equals else "default"] = float(share)
        except ValueError:
            raise InputError(f"--ratio {text}: expected SHARE or PATTERN=SHARE, such as 'layer*.conv1=0.4'") from None
    return table["default"] if set(table) == {"default"} else table


def _recover(options: Any, scorer: Any, plan_only: bool) -> str | None:
    """Returns what ``recover`` is to be: a plan alone needs none, unless it depends on it."""
    asked = str(options["recover"])
    chosen = None if asked.lower() == "none" else asked
    own = Options(recover=chosen).resolve(scorer).recover
    return None if plan_only and own != "reinit" and options["steps"] == 1 else chosen

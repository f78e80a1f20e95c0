"""``fxprune sweep``: several budgets and criteria on one model, compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

import fxprune
from fxprune._base.errors import brief
from fxprune.cli.budgets import BUDGET as BUDGET_SETTINGS
from fxprune.cli.budgets import BUDGET_HELP, Bounds, bounds, budget_of
from fxprune.cli.command import JSON, QUIET, Command, option, told
from fxprune.cli.compile_options import BUDGET, HOW, KEPT, METHOD, METHODS, check_settings, scorer_named, settings
from fxprune.cli.errors import InputError
from fxprune.cli.output import check_file, show, tell, writing
from fxprune.cli.specs import MODEL, ModelSpec, data_options
from fxprune.cli.values import fetch

_EVALUATE = "A function of a model: its quality, higher is better; else fidelity on the data."


@click.command(
    cls=Command,
    short_help="Compare budgets and criteria on one model.",
    examples=[
        "fxprune sweep torchvision:resnet18 --weights DEFAULT --data images/ --budget 0.8 --budget 0.5",
        "fxprune sweep torchvision:resnet18 --data images/ --budget 50% --method variance --method l2 --html sweep.html",
        "fxprune sweep package.module:factory --data data.npz --budget macs=60% --evaluate package.module:accuracy --json",
    ],
)
@click.argument("model")
@option(
    "--budget",
    "budgets",
    type=bounds,
    multiple=True,
    required=True,
    section=BUDGET,
    help=f"{BUDGET_HELP} Repeatable.",
    **BUDGET_SETTINGS,
)
@KEPT
@option(
    "--method",
    "methods",
    multiple=True,
    default=("variance",),
    metavar="NAME",
    section=METHOD,
    help=f"Criterion: {METHODS}. Repeatable.",
)
@HOW
@option("--evaluate", metavar="package.module:f", help=_EVALUATE)
@option("--latency", is_flag=True, help="Measure the milliseconds of a call as well.")
@data_options("--data", "--calib", required=True)
@MODEL
@option("--html", metavar="FILE", help="Write it as one self-contained page, with plots.")
@JSON
@QUIET
def sweep(
    model: str,
    budgets: tuple[Bounds, ...],
    methods: tuple[str, ...],
    html: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Compiles MODEL to every budget with every criterion and compares what comes out; no model is kept.

    MODEL is as for `fxprune compile`. The model is captured once and scored once a criterion. A star marks
    the points that no other one beats.
    """
    from fxprune.cli.data import data_of, load_data
    from fxprune.cli.models import introduce, make
    from fxprune.scoring.scorer import wants_targets

    if html is not None:
        check_file(html)
    introduce(model)
    spec = data_of(options, name="--data")
    evaluate = None if options["evaluate"] is None else _told(fetch(options["evaluate"], "--evaluate"))
    scorers = [scorer_named(name) for name in dict.fromkeys(methods)]
    wanted = settings(options, progress=not quiet)
    for scorer in scorers:
        check_settings(wanted, scorer)
    bounded = [budget_of(given) for given in budgets]
    wanted = {name: value for name, value in wanted.items() if name != "weights"}
    made = make(ModelSpec(**told(ModelSpec, options, spec=model)))
    wants = {wants_targets(scorer) for scorer in scorers}
    targets = next((word for word in ("needed", "welcome") if word in wants), "")
    data = load_data(spec, made, targets=targets, kept=False)
    tell(f"{len(bounded) * len(scorers)} points of {made}", quiet)
    found = fxprune.sweep(made.model, data, bounded, scorers, evaluate=evaluate, latency=options["latency"], **wanted)
    if html is not None:
        with writing(html):
            found.write(html)
        tell(f"wrote {html}", quiet)
    show(found, as_json, quiet)
    if all(point.report is None for point in found.points):
        raise click.exceptions.Exit(1)


def _told(evaluate: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns a function that says in a line how a function of the user's failed."""

    def told(model: Any) -> Any:
        try:
            return evaluate(model)
        except Exception as error:  # whatever it raises
            raise InputError(f"--evaluate fails on the model: {brief(error)}") from error

    return told

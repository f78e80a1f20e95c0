"""``fxprune demo``: train, prune, fine-tune and time a small network on real data."""

from __future__ import annotations

import click

from fxprune.cli.command import Command, option
from fxprune.cli.errors import InputError


@click.command(
    cls=Command,
    short_help="Train, prune, fine-tune and time a small network on real data.",
    examples=["fxprune demo", "fxprune demo --budget 0.5 --method l1 --out digits"],
)
@option("--seed", type=int, default=0, help="Of everything that is drawn.")
@option("--budget", type=float, default=0.25, help="Share of parameters to keep, in (0, 1].")
@option("--method", default="variance", help="Criterion: variance, magnitude, l1, l2, random, ...")
@option("--out", metavar="DIR", help="Save the fine-tuned model there, for fxprune.load.")
def demo(seed: int, budget: float, method: str, out: str | None) -> None:
    """Trains a small residual network on scikit-learn's digits, compiles it, prints the report.

    Then the dense, the pruned and the fine-tuned network are compared. Under a minute.
    """
    from fxprune.contrib import demo as demonstration

    if not demonstration.run(seed=seed, budget=budget, method=method, out=out).reloaded:
        raise InputError("the saved model, loaded again, differs")

"""Budgets on the command line: a share of parameters, or bounds by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

import fxprune
from fxprune.cli.errors import OptionError, about_options, check_word, suggestion
from fxprune.cli.values import amount, portion


def _milliseconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise click.BadParameter(f"expected milliseconds, such as 12.5, got {text!r}") from None


#: What may be bounded, and how a bound is read.
BOUNDS: Mapping[str, Callable[[str], float]] = {
    "params": amount,
    "macs": amount,
    "latency": portion,
    "latency_ms": _milliseconds,
}

#: How it is asked for.
BUDGET: Mapping[str, Any] = {"metavar": "SHARE|BOUND=N,..."}
BUDGET_HELP = "Share of parameters to keep, 0.5 or 50%; or bounds by name, such as params=50%,macs=1.2G."

Bounds = Mapping[str, float]


def bounds(text: Any) -> Bounds:
    """Reads a budget: a share of parameters, or ``params``, ``macs``, ``latency`` and ``latency_ms`` by name."""
    if "=" not in str(text):
        return {"params": _share(str(text))}
    found: dict[str, float] = {}
    for part in str(text).split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        name = name.replace("-", "_")
        if name not in BOUNDS:
            hint = suggestion(name, BOUNDS)
            raise click.BadParameter(f"expected bounds on {', '.join(BOUNDS)}, got {part.strip()!r}{hint}")
        if name in found:
            raise click.BadParameter(f"{name} is bounded twice in {text!r}: expected one bound")
        found[name] = BOUNDS[name](value)
    return found


def _share(text: str) -> float:
    try:
        return portion(text)
    except click.BadParameter as error:
        more = "for a number of parameters use params=, such as params=1.2M"
        raise click.BadParameter(f"{error.message}; {more}") from None


def budget_of(given: Bounds, **more: Any) -> fxprune.Budget:
    """Returns a budget of what ``--budget`` says, and more.

    Raises:
        OptionError: a bound is given twice, or is out of range.
    """
    if twice := sorted(given.keys() & more.keys()):
        option = twice[0].replace("_", "-")
        raise OptionError(f"--budget bounds {twice[0]}, and so does --{option}: give one of them")
    if (backend := more.get("backend")) is not None:
        from fxprune.runtimes.registry import names

        check_word("--latency-backend", backend, names())
    with about_options():
        return fxprune.Budget(**{**given, **more})

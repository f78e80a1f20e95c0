"""Options of `compile` and of `sweep`: what both do, and how it is read before a model is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from fxprune.cli.command import options_of, told
from fxprune.cli.errors import OptionError, about_options, check_word
from fxprune.cli.output import check_folder
from fxprune.cli.values import Words, fetch
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

BUDGET, METHOD = "Budget", "Method"
METHODS, _RECOVERIES, _KINDS = (", ".join(get_args(names)) for names in (MethodName, RecoveryOption, UnitKind))
_NUMBER = {"type": str, "metavar": "N"}
_FUNCTION = {"metavar": "package.module:f"}
_RECOVER = f"How the rest makes up for what goes: {_RECOVERIES} or none; auto is the method's own choice."

#: What stays whatever the budget.
KEPT = options_of(
    Options,
    BUDGET,
    round_to=_NUMBER,
    min_keep=_NUMBER,
    ignore={"metavar": "PATTERN"},
    units={"metavar": "KIND", "help": f"Kinds of unit that may go: {_KINDS}. Repeatable."},
)

#: How it is done, but for the criterion.
HOW = options_of(
    Options,
    METHOD,
    recover={"metavar": "NAME", "help": _RECOVER},
    ridge=_NUMBER,
    holdout={"type": float, "metavar": "SHARE"},
    allow_bias={},
    allocation={"type": Words(get_args(Allocation))},
    basis={"type": Words(get_args(Basis))},
    form={"type": Words(get_args(Form))},
    uniform={},
    loss={**_FUNCTION, "help": "A function of (outputs, targets); else cross-entropy."},
    forward_args=_FUNCTION,
    seed={"help": "Of everything that is drawn."},
    strict={},
    cache_dir={"metavar": "DIR"},
)


def settings(options: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Returns the keyword arguments of ``fxprune.compile`` that `KEPT`, `HOW` and more say, functions fetched.

    Raises:
        OptionError: a word or number is wrong, options do not go together, or a function is not there.
    """
    if options["uniform"] and options["form"] != "module":
        raise OptionError("--uniform is about the original's class: give --form module with it")
    if options["cache_dir"] is not None:
        check_folder(options["cache_dir"])
    found = told(Options, options) | {"recover": None if options["recover"].lower() == "none" else options["recover"]}
    for name, words in (("round_to", (AUTO, MEASURE)), ("min_keep", (AUTO,))):
        found[name] = _number(name, options[name], int, words)
    found["ridge"] = _number("ridge", options["ridge"], float, (AUTO,))
    for name in ("loss", "forward_args"):
        if options[name] is not None:
            found[name] = fetch(options[name], _option(name))
    return found | more


def check_settings(found: Mapping[str, Any], scorer: Any) -> None:
    """Makes sure that the options can be used with a criterion, once all modules are there that may register names.

    Raises:
        OptionError: they cannot.
    """
    from fxprune.budget.solver import ratio_table
    from fxprune.recovery.protocol import registered

    for kind in found["units"]:
        check_word("--units", kind, get_args(UnitKind))
    if found["recover"] is not None:
        check_word("--recover", found["recover"], ("auto", *registered(), "none"))
    with about_options():
        if found.get("ratios") is not None:
            ratio_table(found["ratios"])
        Options.of(found).resolve(scorer)


def scorer_named(name: str) -> Any:
    """Returns the criterion of a name.

    Raises:
        OptionError: there is none; all names, and those that are close.
    """
    from fxprune.scoring.scorer import registered, scorer_of

    check_word("--method", name, sorted(registered()))
    return scorer_of(name)


def _number(name: str, text: str, kind: type[int] | type[float], words: tuple[str, ...]) -> float | str:
    try:
        return text if text in words else kind(text)
    except ValueError:
        expected = ", ".join(["a whole number" if kind is int else "a number", *words[:-1]])
        raise OptionError(f"{_option(name)} {text}: expected {expected} or {words[-1]}") from None


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"

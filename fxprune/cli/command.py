"""Commands whose ``--help`` has sections and examples, and options that are the fields of dataclasses."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, fields
from functools import reduce
from typing import Any, TypeVar

import click

from fxprune.cli.output import results_apart, stages_told
from fxprune.cli.values import Place
from fxprune.compiler.options import described

Function = TypeVar("Function", bound=Callable[..., Any])

_GIVEN = "fxprune.given"

#: What the help calls files and directories.
_PLACES = {"DIR", "FILE", "DATA"}


class Option(click.Option):
    """An option that belongs to a section of the help."""

    def __init__(self, *args: Any, section: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class WithExamples(click.Command):
    """A command whose help ends with examples; each of them is a line that can be pasted."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the examples, unbroken."""
        if self.examples:
            with formatter.section("Examples"):
                formatter.write("".join(f"  {line}\n" for line in self.examples))


class Command(WithExamples):
    """A command whose help shows its options by section, which remembers how it was called and keeps stdout for results."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parses the words of the call."""
        ctx.meta[_GIVEN] = shlex.join(["fxprune", str(self.name), *args])
        if not ctx.resilient_parsing:
            self._check_once(ctx, args)
        return super().parse_args(ctx, args)

    def _check_once(self, ctx: click.Context, args: list[str]) -> None:
        """Makes sure that nothing is said in two ways: which of them was meant?"""
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in order:
            single = isinstance(parameter, click.Option) and not parameter.multiple and not parameter.is_flag
            if single and order.count(parameter) > 1:
                raise click.UsageError(f"Option '{parameter.opts[0]}' is given twice: expected one value.", ctx)
            if others := [other for other in order if other.name == parameter.name and other is not parameter]:
                both = f"'{parameter.opts[0]}' and '{others[0].opts[0]}'"
                raise click.UsageError(f"Options {both} exclude each other.", ctx)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        with results_apart(ctx), stages_told(bool(ctx.params.get("quiet"))):
            return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options by section, those of no section last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Argument):
                continue  # the text says what they are
            if (record := parameter.get_help_record(ctx)) is not None:
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(record)
        for title in sorted(sections, key=lambda title: title == "Options"):
            with formatter.section(title):
                formatter.write_dl(sections[title], col_max=26)


def option(*names: str, section: str = "Options", **settings: Any) -> Callable[[Function], Function]:
    """Returns click's decorator for an option in a section of the help; what is a place is completed as one."""
    if _PLACES & set(str(settings.get("metavar")).split("|")):
        settings = {"type": Place(), **settings}
    shown = settings.get("default") not in (None, False, ())
    return click.option(*names, cls=Option, section=section, **{"show_default": shown, **settings})


def as_given() -> str:
    """Returns the command that runs, as a line that can be pasted."""
    given: str = click.get_current_context().meta[_GIVEN]
    return given


def together(*decorators: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Returns one decorator for several, shown in this order."""
    return lambda function: reduce(lambda made, decorator: decorator(made), decorators[::-1], function)


def asked(default: Any = None, **settings: Any) -> Any:
    """Returns a field of a dataclass that `options_of` makes an option of, with these settings of click's."""
    return field(default=default, metadata={"settings": settings})


def options_of(kind: type, section: str, **settings: Mapping[str, Any]) -> Callable[[Function], Function]:
    """Returns an option for each field of a dataclass that was `asked`, or that has settings here.

    It has the field's name and default, and its text is what the class says of the attribute.
    """
    known, texts = {entry.name: entry for entry in fields(kind)}, described(kind)
    own = {name: entry.metadata["settings"] for name, entry in known.items() if entry.metadata}
    made = []
    for name in own | settings:
        default, text = known[name].default, texts.get(name, "")
        text = (text[:1].upper() + text[1:]).replace("``", "").replace('"', "")
        chosen: dict[str, Any] = {"help": text, "default": default, "multiple": isinstance(default, tuple)}
        chosen |= {"is_flag": True} if default is False else {}
        chosen |= own.get(name, {}) | settings.get(name, {})
        if chosen.get("required"):
            del chosen["default"]  # click takes it for a value that was given
        names = chosen.pop("names", (f"--{name.replace('_', '-')}",))
        made.append(option(*names, section=section, **chosen))
    return together(*made)


def told(kind: type, options: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Returns what the options say about the fields of a dataclass, by the field's name, and more."""
    return {entry.name: options[entry.name] for entry in fields(kind) if entry.name in options} | more


#: Arguments and options that commands have in common.
DIRECTORY = click.argument("directory", metavar="DIR", type=Place())
QUIET = option("-q", "--quiet", is_flag=True, help="Print nothing but errors and warnings.")
JSON = option("--json", "as_json", is_flag=True, help="As JSON: stdout is one document and nothing else.")

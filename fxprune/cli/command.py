"""Commands whose ``--help`` has sections and examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])


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
    """A command whose help shows its options by section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options by section, those of no section last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Argument):
                continue  # the text says what they are
            if (record := parameter.get_help_record(ctx)) is not None:
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(record)
        last = sections.pop("Options", [])
        for title, rows in (*sections.items(), ("Options", last)):
            with formatter.section(title):
                formatter.write_dl(rows, col_max=26)


def option(*names: str, section: str = "Options", **settings: Any) -> Callable[[Function], Function]:
    """Returns click's decorator for an option in a section of the help."""
    default = settings.get("default")
    settings.setdefault("show_default", default not in (None, False, ()))
    return click.option(*names, cls=Option, section=section, **settings)


def together(*decorators: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Returns one decorator for several, shown in this order."""

    def decorate(function: Function) -> Function:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate

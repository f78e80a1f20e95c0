"""What goes to stderr beside the results: warnings, and what a command is about to do."""

from __future__ import annotations

import click


def warn(text: str) -> None:
    """Prints a warning, one line."""
    click.echo(f"fxprune: warning: {text}", err=True)


def tell(text: str, quiet: bool) -> None:
    """Prints a line about what is going on, unless it is to be quiet."""
    if not quiet:
        click.echo(f"fxprune: {text}", err=True)

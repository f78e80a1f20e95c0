"""``fxprune report``: what a compilation did."""

from __future__ import annotations

import json

import click

import fxprune
from fxprune.cli.command import Command, option
from fxprune.cli.files import check_file


@click.command(
    cls=Command,
    short_help="Print what a compilation did.",
    examples=["fxprune report half", "fxprune report half --json", "fxprune report half --html half.html"],
)
@click.argument("directory", metavar="DIR")
@option("--json", "as_json", is_flag=True, help="As JSON.")
@option("--html", metavar="FILE", help="Write it as one self-contained page.")
def report(directory: str, as_json: bool, html: str | None) -> None:
    """Prints the report of DIR, a directory that `fxprune compile` wrote.

    Widths before and after, totals, what is frozen and why, and the certificate that the model equals its
    masked twin.
    """
    from fxprune.storage.artifact import load_report

    found = load_report(directory)
    if html is not None:
        check_file(html)
        fxprune.write_html(found, html)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1))
    elif html is None:
        click.echo(str(found))

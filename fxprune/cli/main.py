"""The program: its commands, and the one place where errors become lines and exit codes."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import click

import fxprune
from fxprune._base.errors import FxpruneWarning, IgnoredPatternWarning
from fxprune.cli.command import WithExamples
from fxprune.cli.commands import apply, bench, demo, explain, report
from fxprune.cli.compile_command import compile_model
from fxprune.cli.deployment_commands import export, quantize
from fxprune.cli.errors import OptionError, is_the_users, one_line
from fxprune.cli.generate_command import generate
from fxprune.cli.output import warn
from fxprune.cli.sweep_command import sweep
from fxprune.cli.training_commands import finetune, retrain

#: What follows the traceback of an error that is none of the user's.
HINT = "fxprune: this is an error of fxprune itself: please report it, with the command and this traceback."


class Failure(click.ClickException):
    """An error of the user's: one line on stderr, exit code 1."""

    def show(self, file: Any = None) -> None:
        """Prints the line."""
        click.echo(f"fxprune: error: {self.message}", err=True, file=file)


class Misuse(Failure):
    """A wrong word on the command line: one line on stderr, exit code 2."""

    exit_code = 2


class Program(WithExamples, click.Group):
    """A group of commands with one error handler."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command; exit codes: 0, 1 for an error to mend, 2 for a wrong usage, 130 if interrupted."""
        try:
            with _warnings_as_lines():
                return super().invoke(ctx)
        except (
            click.ClickException,
            click.exceptions.Exit,
            BrokenPipeError,
        ):  # whose reader has gone: click ends quietly
            raise
        except (KeyboardInterrupt, click.Abort):
            click.echo("fxprune: interrupted", err=True)
            raise click.exceptions.Exit(130) from None
        except Exception as error:
            if is_the_users(error) and not ctx.params.get("traceback"):
                raise (Misuse if isinstance(error, OptionError) else Failure)(one_line(error)) from error
            if not is_the_users(error):
                error.add_note(HINT)
            raise


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Shows each warning of fxprune's once, as a line; other libraries' only where Python was asked to."""
    shown: set[str] = set()

    def show(message: Warning | str, *rest: Any, **more: Any) -> None:
        text = " ".join(str(message).split())
        if text not in shown:
            shown.add(text)
            warn(text)

    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        warnings.simplefilter("always", FxpruneWarning)
        warnings.simplefilter("error", IgnoredPatternWarning)  # a slip of the keyboard, found before any work is done
        warnings.showwarning = show
        yield


@click.group(
    name="fxprune",
    cls=Program,
    commands=[
        *(compile_model, sweep, explain, apply, report, bench, finetune, retrain),
        *(export, quantize, generate, demo),
    ],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    examples=[
        "fxprune demo",
        "fxprune compile torchvision:resnet18 --weights DEFAULT --calib images/ --budget 0.5 --out half",
        "fxprune report half",
    ],
)
@click.version_option(fxprune.__version__, prog_name="fxprune", message="%(prog)s %(version)s")
@click.option("--traceback", is_flag=True, help="Show where an error came from, instead of one line.")
def main(traceback: bool) -> None:
    """A compiler for structured pruning of PyTorch models.

    It takes a model, finds which channels must go together, meets a budget of parameters, MACs or latency,
    and writes a smaller, dense, ordinary model that is verified against the original.
    """

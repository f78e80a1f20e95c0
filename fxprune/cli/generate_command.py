"""``fxprune generate``: a pruned language model continues a text, with its class's ``generate()`` and key-value cache."""

from __future__ import annotations

from typing import Any

import click

from fxprune.cli.command import DIRECTORY, JSON, QUIET, Command, option
from fxprune.cli.errors import InputError, OptionError
from fxprune.cli.output import check_saved, show, tell
from fxprune.cli.specs import dense_options
from fxprune.cli.values import whole_numbers

_TOKENS = "The text as token ids; what is written is token ids as well."


@click.command(
    cls=Command,
    short_help="Continue a text with a pruned language model.",
    examples=[
        "fxprune generate small --model transformers:./lm --prompt 'Once upon a time'",
        "fxprune generate small --model transformers:./lm --tokens 1,415,2936 --length 100 --json",
    ],
)
@DIRECTORY
@option("--prompt", metavar="TEXT", help="What is continued.")
@option("--tokens", type=whole_numbers, metavar="N,N,...", help=_TOKENS)
@option("--length", type=click.IntRange(1), default=50, help="Tokens to write, at most.")
@option("--temperature", type=click.FloatRange(0), default=0.0, help="Of drawing; 0 takes the likeliest token.")
@option("--seed", type=int, default=0, help="Of what is drawn.")
@option("--tokenizer", metavar="NAME|DIR", help="If not the model's own.")
@dense_options("of whose class the pruned one is")
@JSON
@QUIET
def generate(directory: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Continues a text with the pruned model of DIR, compiled with --form module, and says how fast it was.

    The model is called through generate() of its own class, with a key-value cache. --model names the
    original, whose weights are not read.
    """
    from fxprune.cli.generating import continued, encoded
    from fxprune.cli.models import dense_of, load_pruned
    from fxprune.storage.loading import load_report

    if (options["prompt"] is None) == (options["tokens"] is None):
        raise click.UsageError("Expected one of '--prompt' and '--tokens'.")
    check_saved(directory)
    if load_report(directory).form == "graph":
        way = f"compile it with --form module, or write a checkpoint, `fxprune export {directory} out/ --model MODEL`"
        raise InputError(f"{directory} holds a graph, which has no generate(): {way}")
    if options["model"] is None:
        raise OptionError(f"{directory}: which class it has is not stored: give --model MODEL, as it was compiled")
    dense = dense_of(options)
    assert dense is not None, "it was named"
    pruned = load_pruned(directory, dense, options["device"])
    prompt, tokenizer = encoded(dense, options["prompt"], options["tokens"], options["tokenizer"])
    found = continued(pruned, prompt, tokenizer, options["length"], options["temperature"], options["seed"])
    show(found, as_json)
    tell(found.speed, quiet)

"""``fxprune export``: the pruned model as ONNX or a torch program."""

from __future__ import annotations

from typing import Any

import click

import fxprune
from fxprune.cli.command import Command, option
from fxprune.cli.files import check_file
from fxprune.cli.model_options import dense_options


@click.command(
    cls=Command,
    short_help="Write a pruned model as ONNX or a torch program.",
    examples=["fxprune export half half.onnx", "fxprune export half half.pt2"],
)
@click.argument("directory", metavar="DIR")
@click.argument("file")
@option("--part", metavar="NAME", help="Only this submodule, of a model that cannot be exported whole.")
@option("--fixed-batch", is_flag=True, help="The file takes the batch that the model was compiled with, and no other.")
@option("--opset", type=int, help="The ONNX opset.")
@option("--tolerance", type=float, help="The largest difference over the largest output.  [default: 1e-4]")
@dense_options("its architecture, where the directory alone does not do")
@option("-q", "--quiet", is_flag=True, help="Print nothing but errors and warnings.")
def export(
    directory: str,
    file: str,
    part: str | None,
    fixed_batch: bool,
    opset: int | None,
    tolerance: float | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Writes the pruned model of DIR to FILE and compares it.

    FILE ends in .onnx for ONNX, .pt2 for torch.export or .aoti.pt2 for AOTInductor. What is written is
    read again, run, and compared with the model.
    """
    from fxprune.cli.saved import dense_of, load_pruned

    check_file(file)
    dense = dense_of(options, quiet=True)
    given: dict[str, Any] = {"part": part, "opset": opset, "tolerance": tolerance}
    found = fxprune.export(
        load_pruned(directory, dense, options["device"]),
        file,
        dynamic_batch=not fixed_batch,
        **{name: value for name, value in given.items() if value is not None},
    )
    if not quiet:
        click.echo(str(found))

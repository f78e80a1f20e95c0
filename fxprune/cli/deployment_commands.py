"""``fxprune export`` and ``fxprune quantize``: a saved model as the file of a runtime, in floating point or int8."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

import fxprune
from fxprune.cli.command import DIRECTORY, JSON, QUIET, Command, option, together
from fxprune.cli.errors import InputError, OptionError, check_known
from fxprune.cli.output import check_file, check_folder, check_saved, show, tell, writing
from fxprune.cli.specs import ModelSpec, data_options, dense_options
from fxprune.cli.values import Place

#: What int8 may be off by in onnxruntime, which may round the other way between two integers: a whole step.
_STEP = 0.2


def _file_options(tolerance: str) -> Callable[[Any], Any]:
    """Returns the options about a runtime's file."""
    return together(
        option(
            "--fixed-batch",
            is_flag=True,
            help="The file takes the batch that the model was compiled with, and no other.",
        ),
        option("--opset", type=click.IntRange(1), help="The ONNX opset."),
        option(
            "--tolerance",
            type=click.FloatRange(0),
            help=f"The largest difference over the largest output.  [default: {tolerance}]",
        ),
    )


@click.command(
    cls=Command,
    short_help="Write a pruned model as ONNX, a torch program, a checkpoint of transformers or GGUF.",
    examples=[
        "fxprune export half half.onnx",
        "fxprune export half half.pt2",
        "fxprune export half half-hf/ --model transformers:./lm",
        "fxprune export half half.gguf --model transformers:./lm --tokenizer-from lm.gguf",
    ],
)
@DIRECTORY
@click.argument("file", type=Place())
@option("--part", metavar="NAME", help="Only this submodule, of a model that cannot be exported whole.")
@_file_options("1e-4")
@option(
    "--remote-code", is_flag=True, help="A checkpoint may hold a file of code, for widths that no settings can say."
)
@option("--tokenizer-from", metavar="FILE", help="A GGUF file whose tokenizer is copied.")
@dense_options("its architecture, where the directory alone does not do")
@JSON
@QUIET
def export(directory: str, file: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Writes the pruned model of DIR to FILE and compares it.

    FILE ends in .onnx for ONNX, .pt2 for torch.export, .aoti.pt2 for AOTInductor, .xml for OpenVINO, .pte for
    ExecuTorch, .ncnn.param for ncnn, .tflite for LiteRT, .gguf for llama.cpp; a name that ends in / is the directory of a checkpoint that from_pretrained reads. What is written is read
    again, run, and compared with the model.
    """
    from fxprune.cli.models import dense_of, load_pruned

    checkpoint, gguf = file.endswith(("/", os.sep)), file.endswith(".gguf")
    if (options["remote_code"] and not checkpoint) or (options["tokenizer_from"] and not gguf):
        raise OptionError("--remote-code goes with a directory (out/), --tokenizer-from with a .gguf file")
    if options["tokenizer_from"] is not None and not Path(options["tokenizer_from"]).is_file():
        raise OptionError(f"--tokenizer-from {options['tokenizer_from']}: no such file")
    _check_target(directory, file, options, checkpoint, gguf)
    dense = dense_of(options)
    pruned = load_pruned(directory, dense, options["device"])
    if not checkpoint and not gguf:
        show(_exported(pruned, file, options), as_json, quiet)
        return
    if fxprune.report(pruned).form == "graph":
        if dense is None:
            raise InputError(f"{directory} holds a graph: --model says of which class it is to be written")
        pruned = fxprune.restore(pruned, dense.model)
    with writing(file):
        if gguf:
            fxprune.to_gguf(pruned, file, tokenizer_from=options["tokenizer_from"])
        else:
            fxprune.to_pretrained(pruned, file, remote_code=options["remote_code"])
    tell(f"wrote {file}, read it again and compared it", quiet)
    if as_json:
        show({"path": file, "format": "GGUF" if gguf else "checkpoint"}, as_json)


@click.command(
    cls=Command,
    short_help="Write a pruned model in int8.",
    examples=[
        "fxprune quantize half half-int8.onnx --data images/ --model torchvision:resnet50",
        "fxprune quantize half half-int8.pt2 --data package.module:loader --json",
        "fxprune quantize half half-int8.xml --quantizer runtime --data images/ --model torchvision:resnet50",
    ],
)
@DIRECTORY
@click.argument("file", type=Place())
@option(
    "--quantizer",
    type=click.Choice(("torchao", "runtime")),
    default="torchao",
    help="torchao's, or that of the file's own runtime: onnxruntime's for .onnx, NNCF for .xml.",
)
@_file_options("1e-4; 0.2 for ONNX by torchao, which rounds otherwise")
@data_options("--data", "--calib", required=True)
@dense_options("it says how images and texts are prepared")
@JSON
@QUIET
def quantize(directory: str, file: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Writes the pruned model of DIR to FILE in int8, and says how much of its outputs is left.

    Weights become int8, activations uint8 over the range that the data show (torchao's post-training
    quantization). FILE is as for `fxprune export`: .onnx, .pt2 or .aoti.pt2. With --quantizer runtime the file is
    written in floating point, and made int8 by what its runtime brings: .onnx or .xml. Fine-tune first, quantize
    last, and measure the accuracy.
    """
    from fxprune.cli.data import data_of, load_data
    from fxprune.cli.models import Made, dense_of, load_pruned
    from fxprune.cli.quantized import Quantized, fidelity_of

    _check_target(directory, file, options)
    own = options["quantizer"] == "runtime"
    if own:
        _check_own(file, options)
    spec = data_of(options, name="--data")
    dense = dense_of(options)
    pruned = load_pruned(directory, dense, options["device"])
    about = dense or Made(pruned, ModelSpec(spec=directory), "", directory)
    data = load_data(spec, about)
    if own:
        given = {} if options["tolerance"] is None else {"tolerance": options["tolerance"]}
        make = partial(fxprune.export_int8, pruned, file, data, dynamic_batch=not options["fixed_batch"], **given)
        show(_written(file, make), as_json, quiet)
        return
    int8 = fxprune.quantize(pruned, data, dynamic_batch=not options["fixed_batch"])
    close = fidelity_of(pruned, int8, data)
    tolerance = _STEP if options["tolerance"] is None and file.endswith(".onnx") else options["tolerance"]
    written = _exported(int8, file, {**options, "tolerance": tolerance})
    show(Quantized(written, close), as_json, quiet)


def _check_target(
    directory: str, file: str, options: Mapping[str, Any], checkpoint: bool = False, gguf: bool = False
) -> None:
    """Makes sure, before anything is loaded, that there is a model, and that such a file can be written.

    Raises:
        OptionError: there is none, or it cannot.
    """
    from fxprune.cli.models import introduce
    from fxprune.runtimes.registry import suffixes

    check_saved(directory)
    if options["model"] is not None:
        introduce(options["model"])  # it may register a runtime
    if checkpoint:
        check_folder(file)
        return
    if not gguf and not Path(file).name.endswith(known := suffixes()):
        endings = ", ".join(known)
        check_known(Path(file).suffix, known, f"{file}: expected a file name that ends in one of {endings}")
    if not Path(file).parent.is_dir():
        raise OptionError(f"{file}: there is no directory {Path(file).parent}: make it first")
    if options["opset"] is not None and not file.endswith(".onnx"):
        raise OptionError(f"--opset {options['opset']}: only an .onnx file has an opset, got {file}")
    check_file(file)


def _check_own(file: str, options: Mapping[str, Any]) -> None:
    """Makes sure that the file's runtime has a quantizer.

    Raises:
        OptionError: it has none, or does not take an opset.
    """
    from fxprune.runtimes.registry import quantizer_for

    try:
        quantizer_for(Path(file))
    except fxprune.ExportError as error:
        raise OptionError(f"--quantizer runtime: {error}") from error
    if options["opset"] is not None:
        raise OptionError("--opset goes with --quantizer torchao")


def _exported(model: Any, file: str, options: Mapping[str, Any]) -> fxprune.Exported:
    given = {name: options[name] for name in ("part", "opset", "tolerance") if options.get(name) is not None}
    return _written(file, partial(fxprune.export, model, file, dynamic_batch=not options["fixed_batch"], **given))


def _written(file: str, make: Callable[[], fxprune.Exported]) -> fxprune.Exported:
    """Returns what is made, its paths as the user named them."""
    with writing(file):
        found = make()
    beside = tuple(Path(file).with_name(path.name) for path in found.beside)
    return replace(found, path=Path(file), beside=beside)

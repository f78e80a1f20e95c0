"""Which model and which data: as plain data, whose fields the command line asks for as options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from fxprune.cli.command import asked, option, options_of, together
from fxprune.cli.errors import OptionError
from fxprune.cli.values import Words, floats, kind_of, pair

#: What stands for no weights at all.
NONE = ("NONE", "RANDOM")

#: How files of weights end.
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


#: Settings of options that are alike.
PAIRS: Mapping[str, Any] = {"type": pair, "metavar": "KEY=VALUE", "multiple": True}
_COLOURS: Mapping[str, Any] = {"type": floats, "metavar": "X,Y,Z"}
_AT_LEAST_ONE = click.IntRange(1)

Pairs = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """How a model is made; ``weights="none"`` are random ones without a warning.

    Attributes:
        spec: where it comes from, e.g. ``"torchvision:resnet50"``.
        weights: trained weights: DEFAULT (the library's own), the name of one of its sets, or a .safetensors or .pt file
            (a state dict; nothing in it is executed). Without them the weights are random.
        args: a keyword argument of what makes the model, e.g. num_classes=10. Repeatable.
        config: a field of a transformers configuration, e.g. num_hidden_layers=4. Repeatable.
        head: a transformers class, e.g. AutoModelForSequenceClassification; else its own.
        device: where it runs: cpu, cuda, cuda:1, mps.
        seed: of random weights.
        meta: make it without memory, on the meta device.
    """

    spec: str
    weights: str | None = asked(metavar="NAME|FILE")
    args: Pairs = asked((), names=("--arg", "args"), **PAIRS)
    config: Pairs = asked((), **PAIRS)
    head: str | None = asked(metavar="CLASS")
    device: str = asked("cpu")
    seed: int = 0
    meta: bool = False

    @property
    def named(self) -> str | None:
        """The name of weights that the library has; None for a file's, or for none."""
        if self.weights is None or self.weights.upper() in NONE or is_file(self.weights):
            return None
        return self.weights

    @property
    def file(self) -> str | None:
        """The file or folder that holds the weights; None for none, or a library's own."""
        return self.weights if self.weights is not None and is_file(self.weights) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """Where data come from, and how they are prepared: None leaves it to the model's library.

    Raises:
        OptionError: ``mean`` or ``std`` cannot be one.

    Attributes:
        source: a folder of images (searched through; a subfolder for each class where targets are needed), an .npz file (an
            array for each input by its name, and `labels`), a .txt file (a text a line), a .csv or .tsv file,
            package.module:loader (batches, or a function that returns them), or random:SHAPE for trying out.
        name: the option's name, for messages.
        samples: take at most so many.
        batch_size: samples a batch.
        image_size: height and width of images; else what the model's library says.
        mean: mean of each colour, of values in [0, 1]; else the library's.
        std: standard deviation of each colour.
        channels: 1 for grey images.
        labels: ``"auto"``: classes from subfolders where the method needs targets.
        column: the column of a table that holds the text.
        label_column: the column of a table that holds the class.
        tokenizer: if not the model's own.
        max_length: tokens a text.
        pack: join the texts and cut them into pieces of so many tokens, which are the targets as well; 512 for a model that writes
            text, if no column holds classes. 0 takes each text by itself, padded.
        seed: of what is drawn.
    """

    source: Any = asked(metavar="DATA")
    name: str = "--calib"
    samples: int = asked(256, type=_AT_LEAST_ONE)
    batch_size: int = asked(32, type=_AT_LEAST_ONE)
    image_size: int | None = asked(type=_AT_LEAST_ONE)
    mean: tuple[float, ...] | None = asked(**_COLOURS)
    std: tuple[float, ...] | None = asked(**_COLOURS)
    channels: int = asked(3, type=click.Choice([1, 3]))
    labels: Literal["auto", "none"] = asked("auto", type=Words(["auto", "none"]))
    column: str | None = asked()
    label_column: str | None = asked()
    tokenizer: str | None = asked(metavar="NAME|DIR")
    max_length: int = asked(128, type=_AT_LEAST_ONE)
    pack: int | None = asked(type=click.IntRange(0), metavar="TOKENS")
    seed: int = 0

    def __post_init__(self) -> None:
        for name, values in (("--mean", self.mean), ("--std", self.std)):
            if values is not None and len(values) not in (1, self.channels):
                raise OptionError(f"{name}: expected one number, or one a channel ({self.channels}), got {len(values)}")
        if self.std is not None and not all(value > 0 for value in self.std):
            raise OptionError(f"--std: expected numbers above 0, got {', '.join(map(str, self.std))}")


#: The options that say more about a model.
MODEL = options_of(ModelSpec, "Model")


def data_options(*names: str, required: bool = False, samples: int = 256) -> Callable[[Any], Any]:
    """Returns the options that say which data, the first of them by these names."""
    source = {"names": (*names, "source"), "required": required}
    return options_of(DataSpec, "Data", source=source, samples={"default": samples})


def dense_options(why: str) -> Callable[[Any], Any]:
    """Returns the options that name the dense model beside a directory; ``why`` ends the help."""
    help_text = f"The dense model, as for compile: {why}."
    return together(option("--model", metavar="MODEL", section="Model", help=help_text), MODEL)


def is_file(weights: str) -> bool:
    """Returns whether this names a file rather than a set of weights."""
    return bool(kind_of(weights, SUFFIXES)) or Path(weights).exists()

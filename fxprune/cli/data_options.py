"""Which data, and how they are prepared: the options that say it, and what they say as plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import click

from fxprune.cli.command import option, together
from fxprune.cli.errors import InputError
from fxprune.cli.values import floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """What the user says about images; None leaves it to the model's library.

    Attributes:
        size: height and width in pixels.
        mean: a channel's mean, of values in [0, 1].
        std: its standard deviation.
        channels: 1 for grey, 3 for colour.

    Raises:
        InputError: ``mean`` or ``std`` cannot be one.
    """

    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channels: int = 3

    def __post_init__(self) -> None:
        for name, values in (("--mean", self.mean), ("--std", self.std)):
            if values is not None and len(values) not in (1, self.channels):
                raise InputError(f"{name}: expected one number, or one a channel ({self.channels}), got {len(values)}")
        if self.std is not None and not all(value > 0 for value in self.std):
            raise InputError(f"--std: expected numbers above 0, got {', '.join(map(str, self.std))}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """Where data come from.

    Attributes:
        source: a path, ``package.module:loader`` or ``random:SHAPE``.
        name: the option's name, for messages.
        samples: how many to take at most, drawn at random where there are more.
        batch_size: samples a batch.
        images: how images are prepared.
        labels: ``"auto"``: targets where they are wanted; ``"none"``: never.
        column: of a table, the text.
        label_column: of a table, the class.
        tokenizer: a name or folder, if not the model's own.
        max_length: tokens a text.
        seed: of what is drawn.
    """

    source: str
    name: str = "--calib"
    samples: int = 256
    batch_size: int = 32
    images: Preparation = field(default_factory=Preparation)
    labels: Literal["auto", "none"] = "auto"
    column: str | None = None
    label_column: str | None = None
    tokenizer: str | None = None
    max_length: int = 128
    seed: int = 0


def data_options(name: str, *, required: bool, samples: int = 256) -> Callable[[Any], Any]:
    """Returns the options that say which data, for `data_spec`."""
    of_data = partial(option, section="Data")
    colours = partial(of_data, type=floats, metavar="X,Y,Z")
    return together(
        of_data(
            name,
            "source",
            metavar="DATA",
            required=required,
            help=(
                "A folder of images (searched through; a subfolder for each class where targets are needed), an "
                ".npz file (an array for each input by its name, and `labels`), a .txt file (a text a line), a "
                ".csv or .tsv file, package.module:loader (batches, or a function that returns them), or "
                "random:SHAPE for trying out."
            ),
        ),
        of_data("--samples", type=click.IntRange(1), default=samples, help="Take at most so many."),
        of_data("--batch-size", type=click.IntRange(1), default=32, help="Samples a batch."),
        of_data(
            "--image-size",
            type=click.IntRange(1),
            help="Height and width of images; else what the model's library says.",
        ),
        colours("--mean", help="Mean of each colour, of values in [0, 1]; else the library's."),
        colours("--std", help="Standard deviation of each colour."),
        of_data("--channels", type=click.Choice(["1", "3"]), default="3", help="1 for grey images."),
        of_data(
            "--labels",
            type=click.Choice(["auto", "none"]),
            default="auto",
            help="auto: classes from subfolders where the method needs targets.",
        ),
        of_data("--column", help="The column of a table that holds the text."),
        of_data("--label-column", help="The column of a table that holds the class."),
        of_data("--tokenizer", metavar="NAME|DIR", help="If not the model's own."),
        of_data("--max-length", type=click.IntRange(1), default=128, help="Tokens a text."),
    )


def data_spec(options: Mapping[str, Any], name: str, *, source: str | None = None, seed: int = 0) -> DataSpec:
    """Returns the spec that the options of `data_options` describe."""
    images = Preparation(
        size=options["image_size"], mean=options["mean"], std=options["std"], channels=int(options["channels"])
    )
    return DataSpec(
        source=options["source"] if source is None else source,
        name=name,
        samples=options["samples"],
        batch_size=options["batch_size"],
        images=images,
        labels=options["labels"],
        column=options["column"],
        label_column=options["label_column"],
        tokenizer=options["tokenizer"],
        max_length=options["max_length"],
        seed=seed,
    )

"""Which model: the options that say it, and what they say as plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fxprune.cli.command import option, together
from fxprune.cli.values import kind_of, pair

#: What stands for no weights at all.
NONE = ("NONE", "RANDOM")

#: How files of weights end.
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """How a model is made.

    Attributes:
        spec: where it comes from, e.g. ``"torchvision:resnet50"``.
        weights: a name such as ``DEFAULT``, a file, ``"none"``, or None: none, with a warning.
        args: keyword arguments of what makes it.
        config: fields of a transformers configuration.
        head: the class of a transformers model, e.g. ``AutoModelForSequenceClassification``.
        seed: of random weights.
        device: where it goes.
        meta: make it without memory, on the meta device.
    """

    spec: str
    weights: str | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    head: str | None = None
    seed: int = 0
    device: str = "cpu"
    meta: bool = False

    @property
    def named(self) -> str | None:
        """The name of weights that the library has; None for a file's, or for none."""
        if self.weights is None or self.weights.upper() in NONE or is_file(self.weights):
            return None
        return self.weights


def model_options() -> Callable[[Any], Any]:
    """Returns the options that say more about a model, for `spec_of`."""
    of_model = partial(option, section="Model")
    return together(
        of_model(
            "--weights",
            metavar="NAME|FILE",
            help=(
                "Trained weights: DEFAULT (the library's own), the name of one of its sets, or a .safetensors "
                "or .pt file (a state dict; nothing in it is executed). Without them the weights are random."
            ),
        ),
        of_model(
            "--arg",
            "args",
            type=pair,
            metavar="KEY=VALUE",
            multiple=True,
            help="A keyword argument of what makes the model, e.g. num_classes=10. Repeatable.",
        ),
        of_model(
            "--config",
            type=pair,
            metavar="KEY=VALUE",
            multiple=True,
            help="A field of a transformers configuration, e.g. num_hidden_layers=4. Repeatable.",
        ),
        of_model(
            "--head",
            metavar="CLASS",
            help="A transformers class, e.g. AutoModelForSequenceClassification; else its own.",
        ),
        of_model("--device", default="cpu", help="Where it runs: cpu, cuda, cuda:1, mps."),
    )


def spec_of(model: str, options: Mapping[str, Any], *, seed: int = 0, meta: bool = False) -> ModelSpec:
    """Returns the spec that the options of `model_options` describe."""
    return ModelSpec(
        spec=model,
        weights=options["weights"],
        args=dict(options["args"]),
        config=dict(options["config"]),
        head=options["head"],
        device=options["device"],
        seed=seed,
        meta=meta,
    )


def dense_options(why: str) -> Callable[[Any], Any]:
    """Returns the options that name the dense model beside a directory; ``why`` ends the help."""
    return together(
        option("--model", metavar="MODEL", section="Model", help=f"The dense model, as for compile: {why}."),
        model_options(),
    )


def is_file(weights: str) -> bool:
    """Returns whether this names a file rather than a set of weights."""
    return bool(kind_of(weights, SUFFIXES)) or Path(weights).exists()

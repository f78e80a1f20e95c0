"""Calibration data by name: an image folder, arrays, texts, a loader of the user's, or noise."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.cli.command import told
from fxprune.cli.errors import InputError, OptionError
from fxprune.cli.files import TABLES, encoder, length_of_pieces, pieces, read_arrays, read_table
from fxprune.cli.images import class_names, classes_of, default_shape, image_files, read_images, transform_of
from fxprune.cli.models import Made
from fxprune.cli.output import warn
from fxprune.cli.specs import DataSpec
from fxprune.cli.values import fetch, is_reference, kind_of

#: Tokens of pieces of text in a batch, at most: a language model's scores are wide.
_AT_ONCE = 1024

_FILES = (".npz", *TABLES)

_FORMS = (
    "a folder of images, an .npz, .txt, .csv or .tsv file, package.module:loader, or random:SHAPE such as "
    "random:32x3x224x224"
)


def data_of(options: Mapping[str, Any], source: str | None = None, name: str = "--calib") -> DataSpec:
    """Returns which data the options name, once it is known that there are such; the module of a loader is imported.

    Raises:
        OptionError: there is no such file, folder or loader, or no such form of data.
    """
    spec = DataSpec(**told(DataSpec, options, name=name) | ({} if source is None else {"source": source}))
    given, where = str(spec.source), f"{name} {spec.source}"
    if given.startswith("random:"):
        _noise_of(spec)
    elif Path(given).is_dir() or (kind_of(given, _FILES) and Path(given).is_file()):
        return spec
    elif Path(given).exists():
        raise OptionError(f"{where}: this kind of file is not read; expected {_FORMS}")
    elif kind_of(given, _FILES):
        raise OptionError(f"{where}: no such file")
    elif is_reference(given):
        fetch(given, name)
    else:
        raise OptionError(f"{where}: no such file or folder; expected {_FORMS}")
    return spec


def load_data(spec: DataSpec, made: Made, *, targets: str = "", kept: bool = True) -> Any:
    """Returns batches for a model, as ``fxprune.compile`` takes them.

    Args:
        spec: where they come from, as `data_of` found it.
        made: the model that they are for.
        targets: whether they are ``"needed"`` or ``"welcome"``: they are read off subfolders or ``--label-column`` then.
        kept: whether weights come of it, so that noise is to be warned of.

    Raises:
        InputError: there are none, or they are broken; names the file.
    """
    source, path = str(spec.source), Path(str(spec.source))
    if source.startswith("random:"):
        if kept:
            warn(
                f"{spec.name} {source}: this is noise, for trying out: the weights that are kept will fit nothing real"
            )
        return _noise(spec, made)
    if path.is_dir():
        return _images(spec, made, path, "" if spec.labels == "none" else targets)
    if kind := kind_of(source, _FILES):
        return _arrays(spec, made, path) if kind == ".npz" else _texts(spec, made, path)
    found = fetch(source, spec.name)
    return found() if callable(found) and not hasattr(found, "__iter__") else found


def example_of(made: Made, spec: DataSpec) -> list[Any]:
    """Returns one batch of noise that the model takes, where its library says what it takes.

    Raises:
        InputError: it does not say.
    """
    if (shape := default_shape(made, spec)) is not None:
        return [_named(_draw(shape, 0, 0), made)]
    dummy = getattr(made.model, "dummy_inputs", None)
    if made.library == "transformers" and isinstance(dummy, dict):
        return [{name: value for name, value in dummy.items() if isinstance(value, Tensor)}]
    raise InputError(
        f"{made.spec.spec}: which inputs it takes is not known: say it with --calib, such as "
        "random:2x3x224x224 or package.module:loader"
    )


def _drawn(count: int, spec: DataSpec) -> list[list[int]]:
    """Returns the samples of each batch by number: at most so many, drawn at random, the same for the same seed."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(spec.seed))[: spec.samples]
    return [part.tolist() for part in order.split(spec.batch_size)]


def _labelled(batches: Iterable[Any], labels: Iterable[Tensor]) -> list[Any]:
    both = zip(batches, labels, strict=True)
    return [{**batch, "labels": part} if isinstance(batch, dict) else (batch, part) for batch, part in both]


def _arrays(spec: DataSpec, made: Made, path: Path) -> list[Any]:
    """Returns batches; a single array is the model's first argument, several go by their names."""
    inputs, labels = read_arrays(path, made.model)
    first = next(iter(inputs.values()))
    rows = _drawn(len(first), spec)
    single = len(inputs) == 1
    batches = [first[row] if single else {name: tensor[row] for name, tensor in inputs.items()} for row in rows]
    return batches if labels is None else _labelled(batches, (labels[row] for row in rows))


def _texts(spec: DataSpec, made: Made, path: Path) -> list[Any]:
    texts, classes = read_table(path, spec, made)
    if length_of_pieces(made, spec):
        if classes is not None:
            raise InputError(
                f"--pack {spec.pack}: texts with classes are taken each by itself: leave out --label-column"
            )
        tokens = pieces(made, spec, texts)
        at_once = replace(spec, batch_size=min(spec.batch_size, max(_AT_ONCE // tokens.shape[1], 1)))
        return [{"input_ids": tokens[row], "labels": tokens[row]} for row in _drawn(len(tokens), at_once)]
    encode, rows = encoder(made, spec), _drawn(len(texts), spec)
    batches = [encode([texts[index] for index in row]) for row in rows]
    return batches if classes is None else _labelled(batches, (torch.tensor(classes)[row] for row in rows))


def _images(spec: DataSpec, made: Made, folder: Path, targets: str) -> list[Any]:
    every = image_files(folder)
    drawn = [every[index] for row in _drawn(len(every), spec) for index in row]
    images = read_images(drawn, transform_of(made, spec), spec)
    batches = [_named(part, made) for part in torch.stack([*images.values()]).split(spec.batch_size)]
    if not targets:
        return batches
    try:
        classes = classes_of([*images], folder, class_names(made), _outputs(made, batches[0]))
    except InputError as error:
        if targets == "needed":
            raise
        warn(f"{error}: the criterion goes without targets")
        return batches
    return _labelled(batches, torch.tensor(classes).split(spec.batch_size))


def _named(images: Tensor, made: Made) -> Any:
    """Returns a batch of images in the form that the model's library takes."""
    return {"pixel_values": images} if made.library == "transformers" else images


@torch.no_grad()
def _outputs(made: Made, batch: Any) -> int:
    """Returns how many classes a model tells apart: the last size of its first output."""
    if made.spec.meta:
        raise InputError(f"{made.spec.spec}: targets are of no use to a model without weights: leave --meta out")
    images = batch["pixel_values"] if isinstance(batch, dict) else batch
    device = next((p.device for p in made.model.parameters()), torch.device("cpu"))
    try:
        few = _named(images[:2].to(device), made)
        out = made.model(**few) if isinstance(few, dict) else made.model(few)
    except Exception as error:
        what = f"it fails on images {list(images.shape)}: {type(error).__name__}: {error}"
        raise InputError(f"{made.spec.spec}: {what}") from error
    leaves = pytree.tree_leaves(getattr(out, "logits", out))
    logits = next((leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim), None)
    if logits is None:
        what = f"targets are needed, and no output is a tensor with an axis of classes, got {type(out).__name__}"
        raise InputError(f"{made.spec.spec}: {what}")
    return int(logits.shape[-1])


def _noise_of(spec: DataSpec) -> tuple[tuple[int, ...], int]:
    """Returns the shape of the noise, the samples first, and below what its whole numbers are; 0 for real ones."""
    where = f"{spec.name} {spec.source}"
    found = re.fullmatch(r"random:(\d+(?:[x,]\d+)*)(?::(\d+))?", str(spec.source))
    if found is None:
        forms = (
            "random:SHAPE, the samples first, such as random:32x3x224x224, or random:SHAPE:N for whole numbers below N"
        )
        raise OptionError(f"{where}: expected {forms}")
    shape = tuple(int(size) for size in re.split("[x,]", found[1]))
    if 0 in shape:
        raise OptionError(f"{where}: a size is 0; expected sizes of at least 1")
    return shape, int(found[2] or 0)


def _noise(spec: DataSpec, made: Made) -> list[Any]:
    shape, below = _noise_of(spec)
    tokens = made.library == "transformers" and getattr(made.model, "main_input_name", "") == "input_ids"
    if tokens and not below:
        config: Any = made.model.config
        below = int(getattr(config.get_text_config(), "vocab_size", 100))
    try:
        parts = _draw(shape, below, spec.seed).split(spec.batch_size)
    except (RuntimeError, OverflowError) as error:
        raise InputError(f"{spec.name} {spec.source}: so much does not fit into memory") from error
    if tokens:
        return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in parts]
    return [part if below else _named(part, made) for part in parts]


def _draw(shape: tuple[int, ...], below: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(below, shape, generator=generator) if below else torch.randn(shape, generator=generator)

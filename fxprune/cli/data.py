"""Calibration data by name: an image folder, arrays, texts, a loader of the user's, or noise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.cli.arrays import read_arrays
from fxprune.cli.data_options import DataSpec, Preparation
from fxprune.cli.errors import InputError
from fxprune.cli.images import class_names, classes_of, default_shape, image_files, read_image, transform_of
from fxprune.cli.models import Made
from fxprune.cli.say import warn
from fxprune.cli.texts import TABLES, read_table, tokenise
from fxprune.cli.values import fetch, is_reference, kind_of

_FORMS = (
    "a folder of images, an .npz, .txt, .csv or .tsv file, package.module:loader, or random:SHAPE such as "
    "random:32x3x224x224"
)


def load_data(spec: DataSpec, made: Made, *, targets: bool = False) -> Any:
    """Returns batches for a model, as ``fxprune.compile`` takes them.

    Args:
        spec: where they come from.
        made: the model that they are for.
        targets: whether targets are wanted: they are read off subfolders or ``--label-column`` then.

    Raises:
        InputError: there are none, or they are broken; names the file.
    """
    source = spec.source
    if source.startswith("random:"):
        warn(f"{spec.name} {source}: this is noise, for trying out: the weights that are kept will fit nothing real")
        return _noise(spec, made)
    path = Path(source)
    if path.is_dir():
        return _images(spec, made, path, targets and spec.labels != "none")
    kind = kind_of(source, (".npz", *TABLES))
    if kind and not path.exists():
        raise InputError(f"{spec.name} {source}: no such file")
    if kind == ".npz":
        return read_arrays(path, made.model, spec.samples, spec.batch_size, spec.seed)
    if kind:
        texts, classes = read_table(path, spec.column, spec.label_column, made)
        return tokenise(
            _drawn(texts, spec),
            None if classes is None else _drawn(classes, spec),
            made,
            tokenizer=spec.tokenizer,
            max_length=spec.max_length,
            batch_size=spec.batch_size,
        )
    if path.exists():
        raise InputError(f"{spec.name} {source}: this kind of file is not read; expected {_FORMS}")
    if is_reference(source):
        found = fetch(source, spec.name)
        return found() if callable(found) and not hasattr(found, "__iter__") else found
    raise InputError(f"{spec.name} {source}: no such file or folder; expected {_FORMS}")


def example_of(made: Made, images: Preparation) -> list[Any]:
    """Returns one batch of noise that the model takes, where its library says what it takes.

    Raises:
        InputError: it does not say.
    """
    if (shape := default_shape(made, images)) is not None:
        return [_named(_draw(shape, 0, 0), made)]
    dummy = getattr(made.model, "dummy_inputs", None)
    if made.library == "transformers" and isinstance(dummy, dict):
        return [{name: value for name, value in dummy.items() if isinstance(value, Tensor)}]
    raise InputError(
        f"{made.spec.spec}: which inputs it takes is not known: say it with --calib, such as "
        "random:2x3x224x224 or package.module:loader"
    )


def _drawn(values: list[Any], spec: DataSpec) -> list[Any]:
    """Returns at most so many of some values, drawn at random, the same for the same seed."""
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(spec.seed))
    return [values[index] for index in order[: spec.samples].tolist()]


def _images(spec: DataSpec, made: Made, folder: Path, targets: bool) -> list[Any]:
    files = _drawn(image_files(folder), spec)
    transform = transform_of(made, spec.images)
    rows = [files[start : start + spec.batch_size] for start in range(0, len(files), spec.batch_size)]
    batches = [
        _named(torch.stack([read_image(file, transform, spec.images.channels) for file in row]), made) for row in rows
    ]
    if not targets:
        return batches
    classes = classes_of(files, folder, class_names(made), _outputs(made, batches[0]))
    labels = torch.tensor(classes).split(spec.batch_size)
    return [_with_labels(batch, part) for batch, part in zip(batches, labels, strict=True)]


def _with_labels(batch: Any, labels: Tensor) -> Any:
    return {**batch, "labels": labels} if isinstance(batch, dict) else (batch, labels)


def _named(images: Tensor, made: Made) -> Any:
    """Returns a batch of images in the form that the model's library takes."""
    return {"pixel_values": images} if made.library == "transformers" else images


@torch.no_grad()
def _outputs(made: Made, batch: Any) -> int:
    """Returns how many classes a model tells apart: the last size of its first output."""
    if made.spec.meta:
        raise InputError(f"{made.spec.spec}: targets are of no use to a model without weights: leave --meta out")
    device = next((p.device for p in made.model.parameters()), torch.device("cpu"))
    try:
        if isinstance(batch, dict):
            out = made.model(**{name: value[:2].to(device) for name, value in batch.items()})
        else:
            out = made.model(batch[:2].to(device))
    except Exception as error:
        shape = list((batch["pixel_values"] if isinstance(batch, dict) else batch).shape)
        raise InputError(f"{made.spec.spec}: it fails on images {shape}: {type(error).__name__}: {error}") from error
    leaves = pytree.tree_leaves(getattr(out, "logits", out))
    logits = next((leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim), None)
    if logits is None:
        raise InputError(
            f"{made.spec.spec}: targets are needed, and no output is a tensor with an axis of classes, got "
            f"{type(out).__name__}"
        )
    return int(logits.shape[-1])


def _noise(spec: DataSpec, made: Made) -> list[Any]:
    found = re.fullmatch(r"random:(\d+(?:[x,]\d+)*)(?::(\d+))?", spec.source)
    if found is None:
        raise InputError(
            f"{spec.name} {spec.source}: expected random:SHAPE, the samples first, such as "
            "random:32x3x224x224, or random:SHAPE:N for whole numbers below N"
        )
    shape = tuple(int(size) for size in re.split("[x,]", found[1]))
    if 0 in shape:
        raise InputError(f"{spec.name} {spec.source}: a size is 0; expected sizes of at least 1")
    below = int(found[2] or 0)
    tokens = made.library == "transformers" and getattr(made.model, "main_input_name", "") == "input_ids"
    if tokens and not below:
        config: Any = made.model.config
        below = int(getattr(config.get_text_config(), "vocab_size", 100))
    try:
        values = _draw(shape, below, spec.seed)
    except (RuntimeError, OverflowError) as error:
        raise InputError(f"{spec.name} {spec.source}: so much does not fit into memory") from error
    parts = values.split(spec.batch_size)
    if tokens:
        return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in parts]
    return [_named(part, made) if values.is_floating_point() else part for part in parts]


def _draw(shape: tuple[int, ...], below: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if below:
        return torch.randint(below, shape, generator=generator)
    return torch.randn(shape, generator=generator)

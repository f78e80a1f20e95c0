"""Images from a folder: prepared as the model's library says, with classes from subfolders."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from fxprune._base.extras import need
from fxprune.cli.data_options import Preparation
from fxprune.cli.errors import InputError, one_line
from fxprune.cli.models import Made

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

Transform = Callable[[Image.Image], Tensor]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def image_files(folder: Path) -> list[Path]:
    """Returns all images below a folder, sorted.

    Raises:
        InputError: there are none.
    """
    places = os.walk(folder, followlinks=True)
    files = (Path(place, name) for place, _, names in places for name in names if name.lower().endswith(SUFFIXES))
    found = sorted(file for file in files if not any(part[0] == "." for part in file.relative_to(folder).parts))
    if not found:
        kinds = ", ".join(SUFFIXES[:3])
        raise InputError(f"{folder}: no images in this folder ({kinds}, ...), nor in folders below it")
    return found


def read_image(path: Path, transform: Transform, channels: int) -> Tensor:
    """Returns one image, ``[channels, height, width]``.

    Raises:
        InputError: the file is no image, or a broken one.
    """
    try:
        with Image.open(path) as image:
            converted = image.convert("L" if channels == 1 else "RGB")
    except Exception as error:  # Pillow raises a dozen kinds for a broken file
        if isinstance(error, PermissionError):
            raise
        raise InputError(
            f"{path}: it cannot be read as an image ({one_line(error)[:120]}): remove it or put it right"
        ) from error
    return transform(converted)


def classes_of(files: Sequence[Path], folder: Path, known: Sequence[str], outputs: int) -> list[int]:
    """Returns each image's class number, from the name of the subfolder that it lies in.

    A name that is a number is that class; names that are all classes of the model are those; otherwise the
    folders are the model's classes in alphabetical order, if there are as many.

    Args:
        files: the images.
        folder: what the subfolders are in.
        known: the model's class names in order, if it has any.
        outputs: how many classes the model tells apart.

    Raises:
        InputError: images lie outside subfolders, or the folders cannot be told apart as the model's classes.
    """
    names = [file.relative_to(folder).parts[0] for file in files if len(file.relative_to(folder).parts) > 1]
    if len(names) < len(files):
        raise InputError(
            f"{folder}: targets are needed, and images lie outside subfolders: put those of each class into one"
        )
    folders = sorted(set(names))
    if all(name.isdecimal() for name in folders):
        number = {name: int(name) for name in folders}
    elif all(name in known for name in folders):
        number = {name: known.index(name) for name in folders}
    elif len(folders) == outputs:
        number = {name: index for index, name in enumerate(folders)}
    else:
        raise InputError(
            f"{folder}: {len(folders)} subfolders, and the model has {outputs} classes: name each subfolder "
            f"by its class number, 0 to {outputs - 1}" + (", or by the model's names for them" if known else "")
        )
    if (largest := max(number.values())) >= outputs:
        raise InputError(f"{folder}: subfolder {largest}: the model has {outputs} classes, 0 to {outputs - 1}")
    return [number[name] for name in names]


def class_names(made: Made) -> list[str]:
    """Returns the model's names of its classes in order, where its library knows them."""
    if made.library == "torchvision" and made.spec.named is not None:
        return [str(name) for name in _preset(made).meta.get("categories", ())]
    names = getattr(getattr(made.model, "config", None), "id2label", None) or {}
    return [str(names[key]) for key in sorted(names)]


def default_shape(made: Made, prepare: Preparation) -> tuple[int, ...] | None:
    """Returns the shape of two samples that the model takes, if its library says."""
    if made.library == "torchvision":
        preset = _preset(made).transforms()
        if type(preset).__name__ == "VideoClassification":
            height, width = getattr(preset, "crop_size", (112, 112))
            return (2, 3, 16, prepare.size or height, prepare.size or width)
        size = prepare.size or _size_of(made, preset)
        return (2, 3, size, size) if type(preset).__name__ in _STILL else None
    if made.library == "timm":
        return (2, *_timm_config(made, prepare)["input_size"])
    config = getattr(made.model, "config", None)
    if getattr(made.model, "main_input_name", "") != "pixel_values":
        return None
    height = prepare.size or _side(getattr(config, "image_size", 224))
    return (2, getattr(config, "num_channels", 3), height, height)


def transform_of(made: Made, prepare: Preparation) -> Transform:
    """Returns what prepares an image: the model's own preprocessing, with what the user says instead.

    torchvision's weights and timm say theirs; a transformers folder may hold a processor. A model of the
    user's gets the shorter side resized, the centre cropped to 224 and ImageNet's mean and deviation.
    """
    if prepare.channels == 1:
        return _plain(prepare, 224, (0.5,), (0.5,))
    if made.library == "torchvision":
        return _torchvision(made, prepare)
    if made.library == "timm":
        return _timm(made, prepare)
    if made.library == "transformers":
        return _transformers(made, prepare)
    return _plain(prepare, 224, _MEAN, _STD)


#: torchvision's presets for single images of one tensor.
_STILL = ("ImageClassification", "SemanticSegmentation")


def _preset(made: Made) -> Any:
    """Returns torchvision's entry that says how images are prepared."""
    from torchvision import models  # type: ignore[import-untyped]

    sets = models.get_model_weights(made.name)
    name = made.spec.named or "DEFAULT"
    return sets[name] if name in sets.__members__ else sets["DEFAULT"]


def _torchvision(made: Made, prepare: Preparation) -> Transform:
    factory = _preset(made).transforms
    preset = factory()
    mean, std = (tuple(getattr(preset, name, default)) for name, default in (("mean", _MEAN), ("std", _STD)))
    size = prepare.size or _size_of(made, preset)
    if type(preset).__name__ != "ImageClassification":
        return _plain(prepare, size, mean, std)
    resized = max(size, round(size * preset.resize_size[0] / preset.crop_size[0]))
    transform: Transform = factory(
        crop_size=size, resize_size=resized, mean=prepare.mean or mean, std=prepare.std or std
    )
    return transform


def _timm_config(made: Made, prepare: Preparation) -> dict[str, Any]:
    timm = need("timm", "models", made.spec.spec)
    own = {"img_size": prepare.size, "mean": prepare.mean, "std": prepare.std}
    config: dict[str, Any] = timm.data.resolve_model_data_config(made.model, own)
    return config


def _timm(made: Made, prepare: Preparation) -> Transform:
    timm = need("timm", "models", made.spec.spec)
    transform: Transform = timm.data.create_transform(**_timm_config(made, prepare), is_training=False)
    return transform


def _transformers(made: Made, prepare: Preparation) -> Transform:
    transformers = need("transformers", "models", made.spec.spec)
    half = (0.5, 0.5, 0.5)
    own = (prepare.size, prepare.mean, prepare.std) == (None, None, None)
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(made.name, trust_remote_code=False)
    except Exception:  # a folder without a processor, or a kind of model such as `vit`
        side = _side(getattr(made.model.config, "image_size", 224))
        return _plain(prepare, side, half, half)
    if own:
        return lambda image: processor(images=image, return_tensors="pt")["pixel_values"][0]
    mean, std = (tuple(getattr(processor, name, None) or half) for name in ("image_mean", "image_std"))
    return _plain(prepare, _side(getattr(made.model.config, "image_size", 224)), mean, std)


def _plain(prepare: Preparation, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Transform:
    from torchvision.models import ResNet18_Weights  # type: ignore[import-untyped]

    size = prepare.size or size
    transform: Transform = ResNet18_Weights.DEFAULT.transforms(
        crop_size=size, resize_size=round(size / 0.875), mean=prepare.mean or mean, std=prepare.std or std
    )
    return transform


def _size_of(made: Made, preset: Any) -> int:
    """Returns the size that a torchvision model was made for, if it has one, or else that of its weights."""
    own = getattr(made.model, "image_size", None)
    return _side(own or getattr(preset, "crop_size", None) or getattr(preset, "resize_size", None) or 224)


def _side(size: Any) -> int:
    while isinstance(size, (list, tuple)):
        size = size[-1]
    return int(size)

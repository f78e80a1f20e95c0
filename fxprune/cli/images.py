"""Images from a folder: prepared as the model's library says, with classes from subfolders."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from fxprune._base.extras import need
from fxprune.cli.errors import InputError, refused
from fxprune.cli.models import Made
from fxprune.cli.output import warn
from fxprune.cli.specs import DataSpec

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def image_files(folder: Path) -> list[Path]:
    """Returns all images below a folder, sorted.

    Raises:
        InputError: there are none.
    """
    files = (Path(place, name) for place, _, names in os.walk(folder, followlinks=True) for name in names)
    images = (file.relative_to(folder) for file in files if file.name.lower().endswith(SUFFIXES))
    found = sorted(folder / file for file in images if not any(part[0] == "." for part in file.parts))
    if not found:
        raise InputError(
            f"{folder}: no images in this folder ({', '.join(SUFFIXES[:3])}, ...), nor in folders below it"
        )
    return found


def read_images(
    files: Sequence[Path], transform: Callable[[Image.Image], Tensor], spec: DataSpec
) -> dict[Path, Tensor]:
    """Returns the images that can be read, ``[channels, height, width]`` each, by their files; a warning counts the others.

    Raises:
        InputError: none can be read; says why the first one cannot.
    """
    found: dict[Path, Tensor] = {}
    broken: list[InputError] = []
    for file in files:
        try:
            found[file] = transform(_opened(file, spec.channels))
        except InputError as error:
            broken.append(error)
    if broken and not found:
        raise InputError(f"{spec.name} {spec.source}: none of {len(files)} images can be read, the first: {broken[0]}")
    if broken:
        more = "are left out" if len(broken) > 1 else "is left out"
        warn(f"{spec.name} {spec.source}: {len(broken)} of {len(files)} images {more}, such as {broken[0]}")
    return found


def _opened(path: Path, channels: int) -> Image.Image:
    """Returns an image.

    Raises:
        InputError: the file is no image, or a broken one.
    """
    with refused(f"{path}: it cannot be read as an image"), Image.open(path) as image:  # Pillow raises a dozen kinds
        return image.convert("L" if channels == 1 else "RGB")


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
    paths = [file.relative_to(folder).parts for file in files]
    if any(len(path) == 1 for path in paths):
        what = "targets are needed, and images lie outside subfolders: put those of each class into one"
        raise InputError(f"{folder}: {what}")
    names = [path[0] for path in paths]
    folders = sorted(set(names))
    if all(name.isdecimal() for name in folders):
        number = {name: int(name) for name in folders}
    elif all(name in known for name in folders):
        number = {name: known.index(name) for name in folders}
    elif len(folders) == outputs:
        number = {name: index for index, name in enumerate(folders)}
    else:
        what = f"{len(folders)} subfolders, and the model has {outputs} classes"
        way = f"by its class number, 0 to {outputs - 1}" + (", or by the model's names for them" if known else "")
        raise InputError(f"{folder}: {what}: name each subfolder {way}")
    if (largest := max(number.values())) >= outputs:
        raise InputError(f"{folder}: subfolder {largest}: the model has {outputs} classes, 0 to {outputs - 1}")
    return [number[name] for name in names]


def class_names(made: Made) -> list[str]:
    """Returns the model's names of its classes in order, where its library knows them."""
    if made.library == "torchvision" and made.spec.named is not None:
        return [str(name) for name in _preset(made).meta.get("categories", ())]
    names = getattr(getattr(made.model, "config", None), "id2label", None) or {}
    return [str(names[key]) for key in sorted(names)]


def default_shape(made: Made, spec: DataSpec) -> tuple[int, ...] | None:
    """Returns the shape of two samples that the model takes, if its library says."""
    if made.library == "torchvision":
        preset = _preset(made).transforms()
        if type(preset).__name__ == "VideoClassification":
            height, width = getattr(preset, "crop_size", (112, 112))
            return (2, 3, 16, spec.image_size or height, spec.image_size or width)
        size = spec.image_size or _size_of(made, preset)
        return (2, 3, size, size) if type(preset).__name__ in _STILL else None
    if made.library == "timm":
        return (2, *_timm_config(made, spec)["input_size"])
    config = getattr(made.model, "config", None)
    if getattr(made.model, "main_input_name", "") != "pixel_values":
        return None
    height = spec.image_size or _side(getattr(config, "image_size", 224))
    return (2, getattr(config, "num_channels", 3), height, height)


def transform_of(made: Made, spec: DataSpec) -> Any:
    """Returns what prepares an image: the model's own preprocessing, with what the user says instead.

    torchvision's weights and timm say theirs; a transformers folder may hold a processor. A model of the
    user's gets the shorter side resized, the centre cropped to 224 and ImageNet's mean and deviation.
    """
    if spec.channels == 1:
        return _plain(spec, 224, (0.5,), (0.5,))
    own = {"torchvision": _torchvision, "timm": _timm, "transformers": _transformers}.get(made.library)
    return _plain(spec, 224, _MEAN, _STD) if own is None else own(made, spec)


#: torchvision's presets for single images of one tensor.
_STILL = ("ImageClassification", "SemanticSegmentation")


def _preset(made: Made) -> Any:
    """Returns torchvision's entry that says how images are prepared."""
    from torchvision import models  # type: ignore[import-untyped]

    sets = models.get_model_weights(made.name)
    name = made.spec.named or "DEFAULT"
    return sets[name if name in sets.__members__ else "DEFAULT"]


def _torchvision(made: Made, spec: DataSpec) -> Any:
    factory = _preset(made).transforms
    preset = factory()
    mean, std = getattr(preset, "mean", _MEAN), getattr(preset, "std", _STD)
    size = spec.image_size or _size_of(made, preset)
    if type(preset).__name__ != "ImageClassification":
        return _plain(spec, size, tuple(mean), tuple(std))
    resized = max(size, round(size * preset.resize_size[0] / preset.crop_size[0]))
    return factory(crop_size=size, resize_size=resized, mean=spec.mean or mean, std=spec.std or std)


def _timm_config(made: Made, spec: DataSpec) -> Any:
    own = {"img_size": spec.image_size, "mean": spec.mean, "std": spec.std}
    return need("timm", "models", made.spec.spec).data.resolve_model_data_config(made.model, own)


def _timm(made: Made, spec: DataSpec) -> Any:
    create = need("timm", "models", made.spec.spec).data.create_transform
    return create(**_timm_config(made, spec), is_training=False)


def _transformers(made: Made, spec: DataSpec) -> Any:
    transformers, half = need("transformers", "models", made.spec.spec), (0.5, 0.5, 0.5)
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(made.name, trust_remote_code=False)
    except Exception:  # a folder without a processor, or a kind of model such as `vit`
        processor = None
    if processor is not None and (spec.image_size, spec.mean, spec.std) == (None, None, None):
        return lambda image: processor(images=image, return_tensors="pt")["pixel_values"][0]
    mean, std = (tuple(getattr(processor, name, None) or half) for name in ("image_mean", "image_std"))
    return _plain(spec, _side(getattr(made.model.config, "image_size", 224)), mean, std)


def _plain(spec: DataSpec, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Any:
    from torchvision.models import ResNet18_Weights  # type: ignore[import-untyped]

    size = spec.image_size or size
    kept = {"crop_size": size, "resize_size": round(size / 0.875), "mean": spec.mean or mean, "std": spec.std or std}
    return ResNet18_Weights.DEFAULT.transforms(**kept)


def _size_of(made: Made, preset: Any) -> int:
    """Returns the size that a torchvision model was made for, if it has one, or else that of its weights."""
    own = getattr(made.model, "image_size", None)
    return _side(own or getattr(preset, "crop_size", None) or getattr(preset, "resize_size", None) or 224)


def _side(size: Any) -> int:
    while isinstance(size, (list, tuple)):
        size = size[-1]
    return int(size)

"""Images as calibration data: prepared as their library says, with the classes of their folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fxprune
from fxprune.cli import images
from fxprune.cli.data import load_data
from fxprune.cli.images import transform_of
from fxprune.cli.models import Made
from fxprune.cli.specs import DataSpec, ModelSpec
from tests.support.cli import complaint, done, made, misuse


@pytest.mark.slow
def test_images_are_prepared_as_torchvision_and_timm_say() -> None:
    import timm
    import torchvision

    picture = Image.fromarray(np.random.default_rng(1).integers(0, 255, (300, 260, 3), dtype=np.uint8))
    transform = transform_of(made(nn.Identity(), "torchvision", "mobilenet_v2"), DataSpec())
    expected = torchvision.models.MobileNet_V2_Weights.DEFAULT.transforms()(picture)
    assert torch.equal(transform(picture), expected)
    smaller = transform_of(made(nn.Identity(), "torchvision", "mobilenet_v2"), DataSpec(image_size=64))
    assert smaller(picture).shape == (3, 64, 64)
    model = timm.create_model("vit_tiny_patch16_224")
    config = timm.data.resolve_model_data_config(model)
    expected = timm.data.create_transform(**config, is_training=False)(picture)
    assert torch.equal(transform_of(made(model, "timm", "vit_tiny_patch16_224"), DataSpec())(picture), expected)
    plain = transform_of(made(nn.Identity()), DataSpec(image_size=6, mean=(0.0,), std=(1.0,), channels=1))(
        picture.convert("L")
    )
    assert plain.shape == (1, 6, 6) and plain.min() >= 0 and plain.max() <= 1


def test_an_unnamed_vit_takes_the_images_that_it_was_made_for() -> None:
    vit = nn.Identity()
    vit.image_size = 32  # type: ignore[assignment]
    for model, size in ((vit, 32), (nn.Identity(), 518)):
        assert images.default_shape(made(model, "torchvision", "vit_h_14"), DataSpec()) == (2, 3, size, size)
        transform = transform_of(made(model, "torchvision", "vit_h_14"), DataSpec())
        assert transform(Image.new("RGB", (60, 50))).shape == (3, size, size)
    shape = images.default_shape(made(vit, "torchvision", "vit_h_14"), DataSpec(image_size=64))
    assert shape == (2, 3, 64, 64)


def test_only_a_library_s_own_weights_have_its_classes() -> None:
    for weights, count in ((None, 0), ("none", 0), ("mine.pt", 0), ("DEFAULT", 1000), ("IMAGENET1K_V1", 1000)):
        spec = ModelSpec(spec="torchvision:resnet18", weights=weights)
        assert len(images.class_names(Made(nn.Identity(), spec, "torchvision", "resnet18"))) == count


@pytest.mark.parametrize("out", [(), None, 3, {"loss": torch.tensor(1.0)}])
def test_classes_need_an_output_that_tells_them_apart(out: Any) -> None:
    class Says(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return out

    spec = DataSpec(source="pictures", image_size=8)
    with pytest.raises(fxprune.FxpruneError, match="no output is a tensor with an axis of classes"):
        load_data(spec, made(Says()), targets="needed")


def test_classes_are_read_off_subfolders(here: Path) -> None:
    files = images.image_files(here / "pictures")
    folder = here / "pictures"
    assert images.classes_of(files, folder, (), 3) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert images.classes_of(files, folder, ("x", "kind2", "kind0", "kind1"), 4) == [2, 2, 2, 3, 3, 3, 1, 1, 1]
    with pytest.raises(fxprune.FxpruneError, match="3 subfolders, and the model has 1000 classes"):
        images.classes_of(files, folder, (), 1000)
    for index in range(3):
        (folder / f"kind{index}").rename(folder / str(5 * index))
    files = images.image_files(folder)
    assert sorted(images.classes_of(files, folder, (), 1000)) == [0, 0, 0, 5, 5, 5, 10, 10, 10]
    with pytest.raises(fxprune.FxpruneError, match="subfolder 10: the model has 3 classes"):
        images.classes_of(files, folder, (), 3)


def test_images_are_drawn_alike_for_the_same_seed(here: Path) -> None:
    import mine

    def read(**options: Any) -> list[Any]:
        spec = DataSpec(source="pictures", image_size=8, batch_size=4, **options)
        return load_data(spec, made(mine.net()), targets="needed")  # type: ignore[no-any-return]

    first, again, other = read(samples=6), read(samples=6), read(samples=6, seed=1)
    assert [len(labels) for _, labels in first] == [4, 2]
    assert all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], other[0][0])


def test_images_that_cannot_be_used(here: Path) -> None:
    def argv(folder: str, *more: str) -> tuple[str, ...]:
        data = ("--calib", folder, "--image-size", "8")
        return ("compile", "mine:net", *data, "--budget", "0.5", "--out", "out", *more)

    (here / "empty").mkdir()
    assert "no images in this folder" in complaint(*argv("empty"))
    assert "no such file or folder" in misuse(*argv("nowhere"))
    assert "this kind of file is not read" in misuse(*argv("mine.py"))
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(here / "pictures" / "loose.png")
    assert "images lie outside subfolders" in complaint(*argv("pictures", "--method", "taylor"))
    assert "needs targets" in complaint(*argv("pictures", "--method", "taylor", "--labels", "none"))
    # one that takes targets if there are any goes without
    said = done(*argv("pictures", "--method", "obs", "--dry-run")).stderr
    assert "images lie outside subfolders" in said and "goes without targets" in said
    assert "--mean: expected one number, or one a channel (3), got 2" in misuse(*argv("pictures", "--mean", "0.5,0.5"))
    assert "--std: expected numbers above 0, got 0.0" in misuse(*argv("pictures", "--std", "0"))


def test_broken_images_are_left_out_and_counted(here: Path) -> None:
    folder, data = here / "pictures" / "kind0", ("--calib", "pictures", "--image-size", "8", "--batch-size", "4")
    argv = ("compile", "mine:net", *data, "--budget", "0.6", "--method", "taylor", "--recover", "none", "--json")
    whole = done(*argv, "--out", "whole").stdout
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut short")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:80])
    (folder / "empty.png").touch()
    found = done(*argv, "--out", "out")
    (line,) = (line for line in found.stderr.splitlines() if "left out" in line)
    assert line.startswith("fxprune: warning: --calib pictures: 3 of 12 images are left out, such as pictures/kind0/")
    assert json.loads(found.stdout)["params"] == json.loads(whole)["params"]
    (folder / "cut.png").unlink()
    batches = load_data(
        DataSpec(source="pictures", image_size=8, batch_size=4), made(nn.Linear(8, 3)), targets="needed"
    )
    assert [(len(x), len(y)) for x, y in batches] == [(4, 4), (4, 4), (1, 1)]
    for file in here.rglob("kind*/*.png"):
        file.write_bytes(b"")
    said = complaint(*argv, "--out", "more")
    assert "--calib pictures: none of 11 images can be read, the first: pictures/kind" in said


@pytest.mark.slow
def test_means_and_deviations_are_checked_for_every_library() -> None:
    for model in ("torchvision:squeezenet1_1", "timm:vit_tiny_patch16_224", "mine:net"):
        base = ("compile", model, "--weights", "none", "--calib", "pictures", "--budget", "0.5", "--out", "out")
        assert "one a channel (3), got 2" in misuse(*base, "--std", "1,1")
        assert "one a channel (1), got 3" in misuse(*base, "--channels", "1", "--mean", "0,0,0")
        assert "numbers above 0" in misuse(*base, "--std", "1,1,nan")
    transform = transform_of(made(nn.Identity(), "torchvision", "resnet18"), DataSpec(mean=(0.5,), std=(1.0,)))
    assert transform(Image.new("RGB", (9, 9))).unique().tolist() == [-0.5]

"""A detector of ultralytics in its own class: its trainer, validation, checkpoint and exporter take it as they take any."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.support.settings import within

CLASSES = 3
SIZE = 160
#: Three scales less than a whole network: halves, a joined path and a head over two maps.
TINY = {
    "nc": CLASSES,
    "backbone": [
        [-1, 1, "Conv", [8, 3, 2]],
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "C2f", [16, True]],
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 1, "C2f", [32, True]],
    ],
    "head": [
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 2], 1, "Concat", [1]],
        [-1, 1, "C2f", [16]],
        [[7, 4], 1, "Detect", ["nc"]],
    ],
}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for all that is written, before ultralytics is imported for the first time."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("ultralytics")
        within(path, patch)
        patch.chdir(path)
        pytest.importorskip("ultralytics")
        yield path


def as_exported(model: nn.Module, images: Tensor) -> Any:
    """Calls a model as the exporter does: with the other method of the blocks that have one."""
    for module in model.modules():
        if hasattr(module, "forward_split"):
            module.forward = module.forward_split
    return model(images)


def detector(cfg: str | dict[str, Any]) -> Any:
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    return DetectionModel(copy.deepcopy(cfg), nc=CLASSES, verbose=False).eval()


def compiled(model: nn.Module, budget: float | None, **options: Any) -> Any:
    options |= {"form": "module", "also": [as_exported], "progress": False}
    return fxprune.compile(model, torch.rand(2, 3, 64, 64), budget, **options)


def widths(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.named_parameters()}


def drawn(folder: Path, images: int = 16) -> Path:
    """Draws a data set of bright rectangles on noise, one colour a class, and returns its description."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for number in range(images):
        picture = torch.randint(0, 60, (SIZE, SIZE, 3), generator=generator, dtype=torch.uint8)
        rows = []
        for kind in range(CLASSES):
            x, y, w, h = torch.randint(30, 60, (4,), generator=generator).tolist()
            x, y = x + 40 * (kind % 2), y + 40 * (kind // 2)
            picture[y : y + h, x : x + w, kind] = 240
            rows.append(f"{kind} {(x + w / 2) / SIZE} {(y + h / 2) / SIZE} {w / SIZE} {h / SIZE}")
        Image.fromarray(picture.numpy()).save(folder / "images" / f"{number}.png")
        (folder / "labels" / f"{number}.txt").write_text("\n".join(rows))
    names = "".join(f"  {kind}: colour{kind}\n" for kind in range(CLASSES))
    (folder / "data.yaml").write_text(f"path: {folder}\ntrain: images\nval: images\nnames:\n{names}")
    return folder / "data.yaml"


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Any:
    """A small detector that has lost a part of every layer."""
    return compiled(detector(TINY), None, ratios=0.3, method="l2", recover=None)


def test_the_exporters_way_a_fused_copy_and_a_pickle_are_the_classs_own(tiny: Any, tmp_path: Path) -> None:
    model, pruned = detector(TINY), copy.deepcopy(tiny)
    assert type(pruned) is type(model)
    assert all(pruned.model[number].c < model.model[number].c for number in (2, 4, 7))
    images = torch.rand(2, 3, 96, 64)
    with torch.no_grad():
        wanted = pruned(images)[0]
        for other in (as_exported(copy.deepcopy(pruned), images), copy.deepcopy(pruned).fuse(verbose=False)(images)):
            torch.testing.assert_close(other[0], wanted, rtol=1e-4, atol=1e-4)
        torch.save({"model": pruned}, tmp_path / "model.pt")
        again = torch.load(tmp_path / "model.pt", weights_only=False)["model"]
        assert torch.equal(again(images)[0], wanted)


def test_its_loss_is_the_classs_own(tiny: Any) -> None:
    pruned = copy.deepcopy(tiny).train()
    pruned.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5, epochs=1)
    box = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.6, 0.2, 0.3]])
    batch = {"img": torch.rand(2, 3, 64, 64), "bboxes": box, "cls": torch.ones(2, 1), "batch_idx": torch.arange(2.0)}
    optimizer = torch.optim.SGD(pruned.parameters(), 1e-3)
    losses = []
    for _ in range(5):
        loss, parts = pruned(batch)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        losses.append(loss.sum().item())
    assert len(parts) == 3 and losses[-1] < losses[0]
    assert all(value.grad is not None for value in pruned.parameters() if value.requires_grad)


@pytest.mark.slow
def test_a_graph_gives_its_outputs_and_has_no_methods(tiny: Any) -> None:
    graph, images = fxprune.apply(detector(TINY), tiny.plan), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(graph(images)[0], tiny(images)[0], rtol=1e-4, atol=1e-4)
    assert not any(hasattr(graph, name) for name in ("loss", "fuse", "yaml", "save"))


@pytest.fixture(scope="module")
def trained(folder: Path) -> SimpleNamespace:
    """A detector from its description, pruned, and trained by the trainer of the library: before, after, and its checkpoint."""
    from ultralytics import YOLO
    from ultralytics.models.yolo.detect import DetectionTrainer

    data, model = drawn(folder / "data"), detector("yolov8n.yaml")
    pruned = compiled(model, 0.6)
    before = copy.deepcopy(pruned)

    class Trainer(DetectionTrainer):
        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> nn.Module:
            return pruned

    losses: list[float] = []
    yolo = YOLO("yolov8n.yaml")
    yolo.add_callback("on_train_epoch_end", lambda t: losses.append(sum(t.label_loss_items(t.tloss).values())))
    settings = {"amp": False, "plots": False, "workers": 0, "device": "cpu", "seed": 0, "project": str(folder / "runs")}
    course = {"epochs": 2, "batch": 8, "imgsz": SIZE, "optimizer": "SGD", "lr0": 0.01, "warmup_epochs": 0, "mosaic": 0}
    yolo.train(trainer=Trainer, data=str(data), name="one", **settings, **course)
    return SimpleNamespace(
        model=model, before=before, losses=losses, data=data, settings=settings, best=yolo.trainer.best
    )


@pytest.mark.slow
def test_the_trainer_trains_and_its_checkpoint_has_the_widths(trained: SimpleNamespace) -> None:
    from ultralytics import YOLO
    from ultralytics.nn.tasks import DetectionModel

    after = YOLO(trained.best)
    assert type(trained.before) is type(after.model) is DetectionModel
    assert widths(after.model) == widths(trained.before)
    total = sum(value.numel() for value in trained.model.parameters())
    assert sum(value.numel() for value in after.model.parameters()) <= 0.6 * total
    name = "model.0.conv.weight"
    assert not torch.allclose(after.model.state_dict()[name], trained.before.state_dict()[name], atol=1e-3)
    halves = [
        (block.c, after.model.get_submodule(name).c)
        for name, block in trained.model.named_modules()
        if hasattr(block, "c")
    ]
    assert len(halves) == 8 and any(left < whole for whole, left in halves)
    assert len(trained.losses) == 2 and trained.losses[1] < trained.losses[0]
    metrics = after.val(data=str(trained.data), imgsz=SIZE, batch=8, name="two", **trained.settings)
    assert 0 <= metrics.box.map50 <= 1 and set(metrics.names.values()) == {"colour0", "colour1", "colour2"}


@pytest.mark.slow
@pytest.mark.parametrize("size", [160, 224])
def test_its_exporter_writes_what_the_model_computes(trained: SimpleNamespace, size: int) -> None:
    from ultralytics import YOLO

    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxslim")
    path = YOLO(trained.best).export(format="onnx", imgsz=size, device="cpu")
    images = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    (found,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, {"images": images.numpy()}
    )
    with torch.no_grad():
        wanted = YOLO(trained.best).model.eval()(images)[0]
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-3, atol=1e-2)


@pytest.mark.slow
def test_nothing_is_written_elsewhere(trained: SimpleNamespace, folder: Path) -> None:
    from ultralytics.utils import USER_CONFIG_DIR

    assert Path(trained.best).is_relative_to(folder)
    assert USER_CONFIG_DIR.is_relative_to(folder.parents[1])

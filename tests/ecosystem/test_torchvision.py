"""Models of torchvision in their own class: feature extraction, hooks, auxiliary losses, frozen norms, detectors."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import FrozenBatchNorm2d

import fxprune
from tests.support.marks import sampled

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3])
LAYERS = ["layer1", "layer2", "layer3", "layer4"]


def compiled(model: nn.Module, data: Any = IMAGES, **options: Any) -> Any:
    chosen = {"budget": None, "ratios": 0.3, "form": "module", "progress": False} | options
    found = fxprune.compile(model, data, **chosen)
    assert found.report.verified
    return found


def resnet(norm: Any = nn.BatchNorm2d) -> ResNet:
    torch.manual_seed(0)
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5, norm_layer=norm).eval()


@pytest.fixture(scope="module")
def resnet18() -> Any:
    torch.manual_seed(0)
    return compiled(torchvision.models.resnet18(num_classes=5).eval(), method="l2", recover=None)


def test_blocks_are_where_they_were_and_call_their_hooks(resnet18: Any) -> None:
    pruned = copy.deepcopy(resnet18)
    assert type(pruned) is ResNet and type(pruned.layer1[0]) is BasicBlock
    seen: dict[str, tuple[int, ...]] = {}
    for name, block in pruned.named_modules():
        if isinstance(block, BasicBlock):
            block.register_forward_hook(lambda _, args, out, name=name: seen.update({name: tuple(out.shape)}))
    pruned(IMAGES)
    assert len(seen) == 8
    assert all(shape[1] == pruned.get_submodule(name).conv2.out_channels for name, shape in seen.items())
    alone = pruned.layer1[0](torch.randn(2, pruned.conv1.out_channels, 8, 8))
    assert alone.shape == (2, pruned.conv1.out_channels, 8, 8) and pruned.conv1.out_channels < 64


def test_features_are_extracted_by_the_names_of_its_layers(resnet18: Any) -> None:
    features = create_feature_extractor(resnet18, LAYERS).eval()
    maps = features(IMAGES)
    with torch.no_grad():
        x = resnet18.maxpool(resnet18.relu(resnet18.bn1(resnet18.conv1(IMAGES))))
        for name in LAYERS:
            x = resnet18.get_submodule(name)(x)
            torch.testing.assert_close(maps[name], x, rtol=1e-4, atol=1e-5)
    assert [maps[name].shape[1] for name in LAYERS] == [
        resnet18.get_submodule(name)[0].conv2.out_channels for name in LAYERS
    ]


def test_a_head_for_another_task_is_put_on_it(resnet18: Any) -> None:
    pruned = copy.deepcopy(resnet18)
    pruned.fc = nn.Linear(pruned.fc.in_features, 7)
    assert pruned(IMAGES).shape == (4, 7)


def losses(model: nn.Module, loss: Any, steps: int, rate: float) -> list[float]:
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], rate, momentum=0.9)
    found = []
    for _ in range(steps):
        value = loss(model)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        found.append(value.item())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("form", sampled(["module", "graph"], 2))
def test_frozen_norms_stay_frozen(form: str) -> None:
    pruned = compiled(resnet(FrozenBatchNorm2d), form=form).train()
    if form == "module":
        assert type(pruned.bn1) is FrozenBatchNorm2d
        assert pruned.layer1[0].bn1.weight.shape[0] == pruned.layer1[0].conv1.out_channels < 64
    before = {name: value.clone() for name, value in pruned.named_buffers()}
    found = losses(pruned, lambda model: nn.functional.cross_entropy(model(IMAGES), LABELS), 8, 1e-2)
    assert found[-1] < 0.8 * found[0]
    assert len(before) > 10 and all(torch.equal(value, before[name]) for name, value in pruned.named_buffers())


@pytest.mark.slow
def test_auxiliary_heads_are_pruned_with_it_and_trained() -> None:
    torch.manual_seed(0)
    model = torchvision.models.googlenet(num_classes=5, aux_logits=True, init_weights=False).eval()
    pruned = compiled(model, torch.randn(2, 3, 64, 64), method="l2", recover=None)
    assert type(pruned) is torchvision.models.GoogLeNet
    assert pruned.aux1.conv.conv.in_channels < model.aux1.conv.conv.in_channels
    images = nn.functional.interpolate(IMAGES, size=64)
    cross = nn.functional.cross_entropy

    def loss(model: nn.Module) -> Tensor:  # as in torchvision's paper and references
        out = model(images)
        return cross(out.logits, LABELS) + 0.3 * (cross(out.aux_logits1, LABELS) + cross(out.aux_logits2, LABELS))

    found = losses(pruned.train(), loss, 12, 1e-2)
    assert sum(found[-3:]) < 0.8 * sum(found[:3])
    assert pruned.aux1.fc2.weight.grad is not None and pruned.aux2.fc2.weight.grad is not None
    assert isinstance(pruned.eval()(images), Tensor)
    graph = fxprune.apply(model, pruned.plan)
    assert isinstance(graph.train()(images), Tensor) and not hasattr(graph, "aux1")
    assert any("aux1" in note for note in graph.report.notes)


def detector() -> FasterRCNN:
    body = BackboneWithFPN(resnet(FrozenBatchNorm2d), dict(zip(LAYERS, "0123", strict=True)), [64, 128, 256, 512], 32)
    heads = {"box_head": TwoMLPHead(32 * 7 * 7, 64), "box_predictor": FastRCNNPredictor(64, 3)}
    torch.manual_seed(0)
    return FasterRCNN(
        body, min_size=64, max_size=64, rpn_pre_nms_top_n_test=50, rpn_post_nms_top_n_test=10, **heads
    ).eval()


def detection(model: nn.Module) -> Tensor:
    """Returns the loss of a detector on two images with one box each."""
    images = list(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    boxes = torch.tensor([[[8.0, 8.0, 40.0, 40.0]], [[20.0, 10.0, 60.0, 50.0]]])
    torch.manual_seed(0)  # which proposals are looked at is drawn
    return sum(model(images, [{"boxes": box, "labels": torch.tensor([1])} for box in boxes]).values())


SIZED = {
    "forward_args": lambda images: ((list(images),), {}),
    "method": "l2",
    "recover": None,
    "ratios": None,
    "budget": 0.7,
}


@pytest.mark.slow
@pytest.mark.parametrize("form", sampled(["module", "graph"], 2))
def test_a_detector_is_pruned_in_parts_and_keeps_its_class(form: str) -> None:
    """Its list of images cannot be captured; the parts that can take their places in a copy of it, and its losses are its own."""
    model, images = detector(), [torch.rand(1, 3, 64, 64)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxprune.GradientWarning)
        pruned = compiled(model, images, form=form, **SIZED)
    assert type(pruned) is FasterRCNN and pruned.report.verified
    assert isinstance(pruned.backbone, BackboneWithFPN if form == "module" else torch.fx.GraphModule)
    found = losses(pruned.train(), detection, 10, 5e-3)
    assert found[-1] < 0.8 * found[0]
    assert set(pruned.eval()([torch.rand(3, 64, 64)])[0]) == {"boxes", "labels", "scores"}


@pytest.mark.slow
def test_the_backbone_of_a_detector_keeps_its_class() -> None:
    model = detector()
    model.backbone = compiled(model.backbone, torch.rand(1, 3, 64, 64), method="l2", recover=None)
    assert type(model.backbone) is BackboneWithFPN
    assert model.backbone.body.layer4[0].conv1.out_channels < 512
    found = losses(model.train(), detection, 10, 5e-3)
    assert found[-1] < 0.8 * found[0]
    assert set(model.eval()([torch.rand(3, 64, 64)])[0]) == {"boxes", "labels", "scores"}


@pytest.mark.slow
def test_a_graph_has_layers_by_name_and_trains_in_a_plain_loop() -> None:
    graph = compiled(resnet(), form="graph", method="l2", recover=None)
    seen: list[int] = []
    block = graph.get_submodule("layer1.0")
    block.conv1.register_forward_hook(lambda _, args, out: seen.append(out.shape[1]))
    block.register_forward_hook(lambda *_: seen.append(0))  # is never called
    found = losses(graph.train(), lambda model: nn.functional.cross_entropy(model(IMAGES), LABELS), 8, 1e-2)
    assert found[-1] < 0.8 * found[0]
    assert seen == [block.conv1.out_channels] * 8


@pytest.mark.slow
def test_features_are_extracted_from_a_graph_by_the_names_of_single_layers() -> None:
    graph = compiled(resnet(), form="graph", method="l2", recover=None)
    seen: list[Tensor] = []
    graph.get_submodule("layer2.0.conv2").register_forward_hook(lambda _, args, out: seen.append(out))
    graph(IMAGES)
    found = create_feature_extractor(graph, ["layer2.0.conv2"]).eval()(IMAGES)["layer2.0.conv2"]
    torch.testing.assert_close(found, seen[0], rtol=1e-4, atol=1e-5)

"""Models of timm in their own class: their halves, their features, their heads, and the loop of timm's training script."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.support.marks import sampled

timm = pytest.importorskip("timm")

IMAGES = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 5
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}


def compiled(model: nn.Module, **options: Any) -> Any:
    chosen = {"budget": 0.7, "method": "l2", "form": "module", "progress": False} | options
    found = fxprune.compile(model.eval(), IMAGES, **chosen)
    assert found.report.verified
    return found


def vit(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", num_classes=5, **SIZES | settings)


@pytest.fixture(scope="module")
def pruned() -> Any:
    return compiled(vit())


def test_its_halves_are_the_whole(pruned: Any) -> None:
    assert type(pruned) is timm.models.VisionTransformer and pruned.head.in_features < 48
    with torch.no_grad():
        features = pruned.forward_features(IMAGES)
        assert features.shape == (8, 17, pruned.head.in_features)
        assert torch.equal(pruned.forward_head(features), pruned(IMAGES))
        last, maps = pruned.forward_intermediates(IMAGES, indices=2)
        torch.testing.assert_close(last, features)
        assert [value.shape for value in maps] == [(8, pruned.head.in_features, 4, 4)] * 2
        assert pruned.forward_head(features, pre_logits=True).shape == (8, pruned.head.in_features)


@pytest.mark.slow
@pytest.mark.parametrize("name", sampled(["resnet18", "convnext_atto", "efficientnet_b0"], 3))
def test_halves_of_other_architectures(name: str) -> None:
    torch.manual_seed(0)
    found = compiled(timm.create_model(name, num_classes=5), method="l2", recover=None, dynamic_shapes={})
    with torch.no_grad():
        assert torch.equal(found.forward_head(found.forward_features(IMAGES)), found(IMAGES))


def size(model: nn.Module) -> int:
    return sum(value.numel() for value in model.parameters())


def extractor(name: str) -> nn.Module:
    torch.manual_seed(0)
    sizes = {**SIZES, "out_indices": (0, 2)} if name.startswith("vit") else {}
    return timm.create_model(name, features_only=True, **sizes)


@pytest.mark.slow
@pytest.mark.parametrize("name", sampled(["vit_tiny_patch16_224", "resnet18", "convnext_atto"], 3))
def test_an_extractor_of_features_keeps_the_widths_that_it_promises(name: str) -> None:
    """Its outputs are for another network: they stay, and what is between them goes."""
    model = extractor(name)
    found = compiled(model, method="l2", recover=None, dynamic_shapes={})
    assert type(found) is type(model)
    assert [value.shape[1] for value in found(IMAGES)] == found.feature_info.channels() == model.feature_info.channels()
    assert size(found) <= 0.7 * size(model)
    graph = fxprune.apply(model, found.plan)
    assert [value.shape[1] for value in graph(IMAGES)] == found.feature_info.channels()


def with_features_named(model: Any, images: Tensor) -> Tensor:
    """Calls a model of timm with what it says of its features: the three numbers that `reset_classifier` reads."""
    features = model.forward_features(images)
    for width in (model.num_features, model.head_hidden_size, model.embed_dim):
        features = features.view(*features.shape[:-1], width)
    return model.forward_head(features)


def test_a_new_head_is_put_on_it_where_the_call_names_its_width() -> None:
    found = compiled(vit(), also=[with_features_named])
    width = found.head.in_features
    assert found.num_features == found.head_hidden_size == found.embed_dim == width < 48
    found.reset_classifier(7)
    assert found.head.in_features == width and found(IMAGES).shape == (8, 7)


def test_where_no_call_names_it_the_report_does(pruned: Any) -> None:
    (note,) = (note for note in pruned.report.notes if "no call has read these integers" in note)
    assert "num_features (48)" in note and "also=" in note
    assert pruned.num_features == 48 != pruned.head.in_features


def trained(model: Any, epochs: int = 12) -> Iterator[tuple[float, Any]]:
    """Trains as timm's script does, with its optimizer, schedule, loss and average; yields losses and the average."""
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import ModelEmaV3

    optimizer = create_optimizer_v2(model, opt="adamw", lr=3e-3, weight_decay=0.05, layer_decay=0.75)
    schedule, epochs = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=epochs, warmup_epochs=2, warmup_lr=1e-4
    )
    average, loss_of = ModelEmaV3(model, decay=0.8), LabelSmoothingCrossEntropy(0.1)
    model.train()
    for epoch in range(epochs):
        loss = loss_of(model(IMAGES), LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(model, step=epoch)
        schedule.step(epoch + 1)
        yield loss.item(), average


def test_the_loop_of_its_training_script(pruned: Any) -> None:
    model = copy.deepcopy(pruned)
    *_, (last, average) = found = list(trained(model))
    assert last < 0.8 * found[0][0]
    shapes = {name: value.shape for name, value in pruned.state_dict().items()}
    assert {name: value.shape for name, value in average.module.state_dict().items()} == shapes
    assert type(average.module) is type(pruned) and average.module(IMAGES).shape == (8, 5)
    assert not torch.equal(average.module.head.weight, pruned.head.weight)


def test_checkpointing_has_the_same_gradients(pruned: Any) -> None:
    model = copy.deepcopy(pruned).train()
    found: list[dict[str, Tensor]] = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        nn.functional.cross_entropy(model(IMAGES), LABELS).backward()
        found.append({name: value.grad.clone() for name, value in model.named_parameters()})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_graph_takes_the_loop_and_has_no_methods() -> None:
    graph = compiled(vit(), form="graph")
    methods = (
        "forward_features",
        "forward_head",
        "forward_intermediates",
        "set_grad_checkpointing",
        "reset_classifier",
    )
    assert not any(hasattr(graph, name) for name in methods)
    found = [loss for loss, _ in trained(graph)]
    assert found[-1] < 0.8 * found[0]

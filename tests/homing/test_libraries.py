"""Models of the libraries in their own class: blocks with hooks, generation with a cache, tied weights, halves, windows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.support.marks import sampled
from tests.support.zeroed import with_zeros

transformers = pytest.importorskip("transformers")
torchvision = pytest.importorskip("torchvision")


def compiled(model: nn.Module, data: Tensor, budget: float = 0.7, **options: Any) -> Any:
    chosen = {"method": "l2", "recover": None, "form": "module", "dynamic_shapes": {}, "progress": False} | options
    found = fxprune.compile(model.eval(), data, budget, **chosen)
    assert type(found) is type(model) and found.report.verified is not False
    return found


def shufflenet() -> tuple[nn.Module, Tensor]:
    model = torchvision.models.ShuffleNetV2([1, 2, 1], [8, 16, 32, 64, 32], num_classes=5)
    return model, torch.randn(2, 3, 64, 64)


def swin() -> tuple[nn.Module, Tensor]:
    sizes = {"patch_size": [4, 4], "embed_dim": 16, "depths": [2], "num_heads": [2], "window_size": [4, 4]}
    return torchvision.models.SwinTransformer(**sizes, num_classes=5), torch.randn(2, 3, 32, 32)


def vit() -> tuple[nn.Module, Tensor]:
    sizes = {"image_size": 16, "patch_size": 8, "num_layers": 1, "num_heads": 4, "hidden_dim": 32, "mlp_dim": 48}
    model = torchvision.models.VisionTransformer(**sizes, num_classes=5)
    nn.init.normal_(model.heads.head.weight)
    return model, torch.randn(2, 3, 16, 16)


@pytest.mark.parametrize("make", [shufflenet, swin, vit])
def test_halves_windows_and_packed_attention_come_home(make: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    torch.manual_seed(0)
    model, data = make()
    before = copy.deepcopy(model.state_dict())
    home = compiled(model, data, 0.85)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    graph = fxprune.apply(model, home.plan)
    torch.testing.assert_close(home(data), graph(data), rtol=1e-4, atol=1e-5)


def llama() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 90}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads, pad_token_id=0)).eval()


@pytest.mark.parametrize("form", sampled(["module", "graph"], 2))
def test_a_language_model_in_steps_is_the_original_with_zeros(form: str) -> None:
    """Capture asks it for no cache: what comes of a step is not told so, and a class counts in its norms what is left."""
    model, ids = llama(), torch.randint(1, 90, (4, 9))
    options: Any = {"method": "l2", "recover": None, "steps": 2, "form": form, "dynamic_shapes": {}, "progress": False}
    small = fxprune.compile(model, ids, 0.7, **options)
    assert small.report.verified is True
    zeroed = with_zeros(copy.deepcopy(model), small.report.plan.keep)
    torch.testing.assert_close(small(ids).logits, zeroed(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_language_model_generates_with_its_cache() -> None:
    model, ids = llama(), torch.randint(1, 90, (2, 9))
    home = compiled(model, ids, dynamic_shapes=None)
    graph = fxprune.apply(model, home.plan)
    with torch.no_grad():
        found = home.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
        for length in range(ids.shape[1], found.shape[1]):  # step by step what the graph gives for the whole
            assert torch.equal(graph(found[:, :length]).logits[:, -1].argmax(-1), found[:, length])
        beams = home.generate(ids, max_new_tokens=4, num_beams=2, pad_token_id=0)
        slow = home.generate(ids, max_new_tokens=4, num_beams=2, use_cache=False, pad_token_id=0)
        assert torch.equal(beams, slow)
        left = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids[:1, :6]], 1)
        mask = (left != 0).long()
        padded = home.generate(left, attention_mask=mask, max_new_tokens=3, do_sample=False, pad_token_id=0)
        alone = home.generate(ids[:1, :6], max_new_tokens=3, do_sample=False, pad_token_id=0)
        assert torch.equal(padded[:, -3:], alone[:, -3:])


@pytest.mark.slow
def test_hooks_losses_ties_and_checkpointing_are_the_class_s_own() -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=90, n_positions=64)
    model, ids = transformers.GPT2LMHeadModel(config).eval(), torch.randint(1, 90, (2, 9))
    home = compiled(model, ids)
    assert home.lm_head.weight is home.transformer.wte.weight
    seen: list[tuple[int, ...]] = []
    home.transformer.h[0].register_forward_hook(lambda _, args, out: seen.append(tuple(args[0].shape)))
    home.train()
    home.gradient_checkpointing_enable()
    loss = home(ids, labels=ids).loss
    loss.backward()
    assert seen and seen[0][-1] == home.transformer.wte.weight.shape[1] < 32
    assert all(p.grad is not None for p in home.parameters() if p.requires_grad)


def test_every_recovery_comes_home() -> None:
    torch.manual_seed(0)
    blocks = torchvision.models.resnet.BasicBlock
    model, data = torchvision.models.ResNet(blocks, [1, 1, 1, 1], num_classes=5), torch.randn(4, 3, 32, 32)
    for recover in ("covariance", "sequential", "mean_shift", "reinit"):
        home = compiled(model, data, 0.9, recover=recover, ignore=["layer3", "layer4"])
        assert home.layer1[0].conv1.out_channels == home.layer1[0].conv1.weight.shape[0]

"""Layers that go whole: the list gets shorter, settings and numbers with it, and what is left computes what the graph does."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.support.marks import sampled
from tests.support.zeroed import with_zeros

WIDTH = 16


class Branch(nn.Module):
    """A layer of two residual branches, before a norm; it knows its number."""

    def __init__(self, index: int, bias: bool) -> None:
        super().__init__()
        self.index, self.norm, self.norm2 = index, nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 24, bias), nn.Linear(24, WIDTH, bias)
        self.up2, self.down2 = nn.Linear(WIDTH, 24, bias), nn.Linear(24, WIDTH, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.down(self.up(self.norm(x)).relu())
        return x + self.down2(self.up2(self.norm2(x)).relu())


class Tall(nn.Module):
    """A stem, layers in a list or in a row, and a head."""

    def __init__(self, layers: int = 5, bias: bool = True, row: bool = False) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(7, WIDTH), nn.Linear(WIDTH, 3)
        made = [Branch(i, bias) for i in range(layers)]
        self.layers = nn.Sequential(*made) if row else nn.ModuleList(made)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if isinstance(self.layers, nn.Sequential):
            x = self.layers(x)
        else:
            for layer in self.layers:
                x = layer(x)
        return self.head(x)


class Counting(Tall):
    """Goes by numbers that it remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.count = len(self.layers)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i in range(5):
            x = self.layers[i](x)
        return self.head(x)


class Relu(Tall):
    """Has something of its own behind each branch."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x).relu() if layer.index % 2 else layer(x)
        return self.head(x)


def layers_of(branch: nn.Module) -> tuple[nn.Module, ...]:
    return branch.up, branch.up2, branch.down, branch.down2


def compiled(model: nn.Module, x: Any, budget: float, **options: Any) -> Any:
    chosen = {"units": "block", "dynamic_shapes": {}, **options}
    return fxprune.compile(model, x, budget, form="module", progress=False, **chosen)


@pytest.mark.parametrize(
    ("bias", "row", "recover"), sampled(list(product((False, True), (False, True), ("mean_shift", None))), 3)
)
def test_what_is_left_of_a_list_is_the_graph(bias: bool, row: bool, recover: str | None) -> None:
    torch.manual_seed(0)
    model, x = Tall(bias=bias, row=row), torch.randn(6, 7)
    before = copy.deepcopy(model.state_dict())
    home = compiled(model, x, 0.65, recover=recover)
    graph = fxprune.apply(model, home.plan)
    assert type(home) is Tall and 2 <= len(home.layers) < 5
    assert [layer.index for layer in home.layers] == list(range(len(home.layers)))
    if recover is None:
        torch.testing.assert_close(home(x), graph(x))
    assert fxprune.report(home).verified
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert len(model.layers) == 5 and [layer.index for layer in model.layers] == list(range(5))


def test_a_graph_without_layers_comes_home_and_a_file_does(tmp_path) -> None:
    torch.manual_seed(1)
    model, x = Tall(), torch.randn(6, 7)
    for layer in (*layers_of(model.layers[2]), *layers_of(model.layers[3])):
        torch.nn.init.normal_(layer.weight, std=1e-4)
    graph = fxprune.compile(model, x, 0.65, units="block", dynamic_shapes={}, progress=False)
    home = fxprune.restore(graph, model)
    torch.testing.assert_close(home(x), graph(x))
    fxprune.save(home, tmp_path / "short")
    again = fxprune.load(tmp_path / "short", Tall())
    assert len(again.layers) == len(home.layers) < 5
    torch.testing.assert_close(again(x), home(x), rtol=0, atol=0)


def test_widths_and_layers_go_together() -> None:
    torch.manual_seed(2)
    model, x = Tall(), torch.randn(16, 7)
    for layer in layers_of(model.layers[2]):
        torch.nn.init.normal_(layer.weight, std=1e-4)
        torch.nn.init.zeros_(layer.bias)
    home = compiled(model, x, 0.6, units=["channel", "block"], method="l2")
    assert len(home.layers) < 5
    assert any(layer.up.out_features < 24 for layer in home.layers)


def test_a_first_layer_with_biases_goes_into_the_stems() -> None:
    torch.manual_seed(3)
    model, x = Tall(layers=2), torch.randn(6, 7)
    torch.nn.init.zeros_(model.layers[0].down.weight)
    torch.nn.init.zeros_(model.layers[0].down2.weight)
    home = compiled(model, x, 0.6, recover=None)
    left = model.stem.bias + model.layers[0].down.bias + model.layers[0].down2.bias
    assert len(home.layers) == 1
    torch.testing.assert_close(home.stem.bias, left)
    torch.testing.assert_close(home(x), model(x))


@pytest.mark.parametrize("kind", [Counting, Relu])
def test_a_class_that_cannot_lose_a_layer_keeps_all(kind: type[Tall]) -> None:
    torch.manual_seed(4)
    model, x = kind(), torch.randn(6, 7)
    home = compiled(model, x, 0.7, units=["channel", "block"])
    assert len(home.layers) == 5
    assert any("stay" in note for note in fxprune.report(home).notes)


def test_a_training_step_is_that_of_the_original_without_the_layers() -> None:
    torch.manual_seed(5)
    model, x = Tall(bias=False).double(), torch.randn(6, 7).double()
    home = compiled(model, x, 0.65, recover=None)
    left = with_zeros(copy.deepcopy(model), home.plan.keep)
    for net in (home, left):
        net.train()(x).square().sum().backward()
    torch.testing.assert_close(home.head.weight.grad, left.head.weight.grad)
    torch.testing.assert_close(home.stem.weight.grad, left.stem.weight.grad)


@pytest.mark.filterwarnings("ignore")
def test_a_language_model_loses_layers_with_its_settings(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(6)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 60}
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    config = transformers.Qwen3Config(
        **sizes,
        num_hidden_layers=4,
        num_key_value_heads=2,
        head_dim=8,
        layer_types=kinds,
        sliding_window=64,
        use_sliding_window=True,
    )
    model, ids = transformers.Qwen3ForCausalLM(config).eval(), torch.randint(1, 60, (4, 10))
    home = compiled(model, ids, 0.75)
    left, settings = len(home.model.layers), home.config
    assert left < 4 and settings.num_hidden_layers == left == len(settings.layer_types)
    assert [layer.self_attn.layer_idx for layer in home.model.layers] == list(range(left))
    assert home.model.config is settings and model.config.num_hidden_layers == 4 and len(model.config.layer_types) == 4
    fxprune.to_pretrained(home, tmp_path / "short")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "short")
    torch.testing.assert_close(again(ids).logits, home(ids).logits)
    text = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(home.generate(ids, **text), home.generate(ids, **text, use_cache=False))
